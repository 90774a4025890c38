"""What a class or function does, by its compiled code: for fingerprints where there is no source file to hash."""

from __future__ import annotations

import dis
import hashlib
import re
import types
from collections.abc import Iterator
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
WRAPPERS = ("__func__", "fget", "fset", "func", "__wrapped__")
"""Where static methods, class methods, properties, cached properties and decorated functions hold a function."""


def of_compiled(thing: Any) -> Iterator[str]:
    """Yields texts that change with what the class or function does, and not from one process to the next.

    That is its instructions, constants, names and defaults, those of its methods and base classes, and of all
    functions, classes, plain values and arrays of the same module that these use. Other objects count by their type
    alone.
    """
    yield from _Walk(getattr(thing, "__module__", None)).of(thing)


class _Walk:
    def __init__(self, module: str | None) -> None:
        self._module = module
        self._seen: set[int] = set()

    def of(self, value: Any) -> Iterator[str]:
        if isinstance(value, PLAIN):
            yield repr(value)
        elif isinstance(value, re.Pattern):
            yield repr((value.pattern, value.flags))
        elif isinstance(value, tuple | list):
            yield type(value).__name__
            for item in value:
                yield from self.of(item)
        elif isinstance(value, set | frozenset):
            yield from sorted(text for item in value for text in self.of(item))
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from (*self.of(key), *self.of(item))
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            yield from self._of_object(value)

    def _of_object(self, value: Any) -> Iterator[str]:
        if isinstance(value, types.CodeType):
            yield from self._of_code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif hasattr(value, "detach") and hasattr(value, "shape"):  # a tensor
            yield from self._of_object(value.detach().cpu().double().numpy())
        elif hasattr(value, "tobytes"):  # an array
            yield hashlib.sha256(value.tobytes()).hexdigest()
        else:
            yield type(value).__qualname__
            for name in WRAPPERS:
                if isinstance(inner := getattr(value, name, None), types.FunctionType):
                    yield from self.of(inner)

    def _of_code(self, code: types.CodeType) -> Iterator[str]:
        yield f"{code.co_name} {code.co_argcount} {code.co_kwonlyargcount} {code.co_varnames} {code.co_freevars}"
        for step in dis.get_instructions(code):
            yield step.opname
            if not isinstance(step.argval, types.CodeType):
                yield from self.of(step.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.of(constant)

    def _of_function(self, function: types.FunctionType) -> Iterator[str]:
        if function.__module__ != self._module:
            yield f"{function.__module__}.{function.__qualname__}"
            return
        yield from self._of_code(function.__code__)
        yield from self.of([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                yield from self.of(cell.cell_contents)
            except ValueError:  # a name that was never assigned
                yield "unassigned"
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield name
                yield from self.of(function.__globals__[name])

    def _of_class(self, cls: type) -> Iterator[str]:
        yield f"{cls.__module__}.{cls.__qualname__}"
        if cls.__module__ != self._module:
            return
        for base in cls.__bases__:
            yield from self.of(base)
        for name, value in vars(cls).items():
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "_abc_impl"):
                yield name
                yield from self.of(value)


def _names(code: types.CodeType) -> list[str]:
    """Global names that the code may use, those of functions within it among them."""
    names = [*code.co_names]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return list(dict.fromkeys(names))
