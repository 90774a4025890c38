"""Binds plain data to a dataclass, with every problem listed at once."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ostlight.errors import ConfigError

T = TypeVar("T")


def bind(schema: type[T], values: Mapping[str, Any], where: str = "", source: str = "config") -> T:
    """An instance of ``schema`` filled from nested plain data.

    Args:
        schema: a dataclass; nested dataclasses, lists of them and ``X | None`` are followed.
        values: as read from YAML.
        where: the dotted path of ``values``, for messages.
        source: the file they came from, for messages.

    Raises:
        ConfigError: unknown keys (with the nearest valid one and the list of all) and wrong types, all at once.
    """
    problems = list(_unknown_keys(schema, values, where))
    if not problems:
        try:
            return typing.cast(T, OmegaConf.to_object(OmegaConf.merge(_blank(schema), dict(values))))
        except OmegaConfBaseException as error:
            problems = [*_wrong_values(schema, values, where)] or [str(error).splitlines()[0]]
            raise ConfigError(problems, source) from error
    raise ConfigError([*problems, *_wrong_values(schema, values, where)], source)


_hints: Callable[[type], dict[str, Any]] = cache(typing.get_type_hints)
_blank: Callable[[type], Any] = cache(OmegaConf.structured)
"""What is merged into; a merge leaves it as it is."""


def _unknown_keys(schema: type, values: Mapping[str, Any], where: str) -> Iterator[str]:
    hints = _hints(schema)
    valid = [f.name for f in dataclasses.fields(schema)]
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            yield f"unknown key {path!r}; {hint}valid here: {', '.join(valid) or 'none'}"
            continue
        inner = _dataclass_in(hints[key])
        if inner is None:
            continue
        if isinstance(value, Mapping):
            yield from _unknown_keys(inner, value, path)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _unknown_keys(inner, item, f"{path}[{i}]")


def _wrong_values(schema: type, values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Binds leaf by leaf, since a bind of the whole would stop at the first problem."""
    base = _blank(schema)
    hints = _hints(schema)
    for key, value in values.items():
        if key not in hints:
            continue  # told as unknown
        path = f"{where}.{key}" if where else str(key)
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, Mapping):
            yield from _wrong_values(inner, value, path)
        elif inner is not None and isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
            for i, item in enumerate(value):
                yield from _wrong_values(inner, item, f"{path}[{i}]")
        else:
            try:
                OmegaConf.merge(base, {key: value})
            except OmegaConfBaseException:
                yield f"{path} takes {_spell(hints[key])}; got {value!r} ({type(value).__name__})"


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass a type hint is about: ``D``, ``D | None``, ``list[D]``."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    for part in typing.get_args(hint):
        found = _dataclass_in(part)
        if found is not None:
            return found
    return None


def _spell(hint: Any) -> str:
    """A type hint in words a YAML author knows."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_spell(a) for a in typing.get_args(hint))
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(hint))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if hint in words:
        return words[hint]
    if typing.get_origin(hint) is list:
        return f"a list, each item {_spell(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a mapping"
    return getattr(hint, "__name__", str(hint))
