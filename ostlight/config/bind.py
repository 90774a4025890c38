"""Plain data to checked dataclasses: pydantic checks types and bounds, this module words what it finds.

A schema is a standard dataclass. Types and bounds are annotations (``Annotated[int, Ge(1)]``, ``Literal["a", "b"]``);
rules over several fields are a method ``problems()`` or the class attribute ``alternatives``, both optional.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from ostlight.errors import ConfigError

T = TypeVar("T")

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("ge", "at least"),
    Gt: ("gt", "above"),
    Le: ("le", "at most"),
    Lt: ("lt", "below"),
}
_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def bind(
    schema: type[T],
    values: Mapping[str, Any],
    where: str = "",
    source: str = "config",
    renamed: Mapping[str, str] | None = None,
) -> T:
    """An instance of ``schema`` filled from nested plain data, with every problem reported at once.

    Args:
        schema: a dataclass of simple types, nested dataclasses, lists and mappings.
        values: as read from YAML. Nothing is converted but whole numbers to floats.
        where: the dotted path of ``values``, for messages.
        source: the file they came from, for messages.
        renamed: old names, refused with the new one. An old key is a dotted path below ``where``, without list indices
            (``budgets.within``); an old value is ``path=value`` (``order=easy_to_hard``). Each maps to the new name
            or to a sentence that says what to do instead.

    Raises:
        ConfigError: unknown keys, wrong types, values out of bounds, broken rules.
    """
    problems = dict(_renamed(values, renamed or {}, where))
    try:
        settings = _validate(schema, values)
    except ValidationError as error:
        for details in error.errors():
            path, message = _describe(schema, details, where)
            problems.setdefault(path, message)
        # The rules over several fields are checked on what is left, so that all problems are listed at once.
        settings = _validate(schema, _without_errors(values, error))
    rules = [
        problem
        for problem in rule_violations(settings, where)
        if not any(path.startswith(problem.split()[0].rstrip(":")) for path in problems)
    ]
    if problems or rules:
        raise ConfigError([*problems.values(), *rules], source)
    return settings


def check(settings: Any, where: str = "", source: str = "config") -> None:
    """Check a dataclass instance as if it had been read from a file.

    Raises:
        ConfigError: as ``bind``.
    """
    bind(type(settings), dataclasses.asdict(settings), where, source)


def rule_violations(settings: Any, where: str = "") -> Iterator[str]:
    """Violations of the rules over several fields, in ``settings`` and all that is nested in it."""
    if isinstance(settings, list):
        for i, item in enumerate(settings):
            yield from rule_violations(item, f"{where}[{i}]")
    if not dataclasses.is_dataclass(settings):
        return
    alternatives = getattr(settings, "alternatives", ())
    given = {name: value for name in alternatives if (value := getattr(settings, name)) is not None}
    if len(given) > 1:
        got = ", ".join(f"{name}={value}" for name, value in given.items())
        yield f"{where or 'this'} takes one of {', '.join(alternatives)}; got {got}"
    for problem in getattr(settings, "problems", tuple)():
        yield _join(where, problem)
    for f in dataclasses.fields(settings):
        yield from rule_violations(getattr(settings, f.name), _join(where, f.name))


def allowed_values(hint: Any) -> str:
    """A type hint in words that a YAML author knows: ``a whole number, at least 1, or null``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [f"{word} {getattr(b, name):g}" for b in _bounds_in(parts[1:]) for name, word in [_BOUNDS[type(b)]]]
        return allowed_values(parts[0]) + (f", {' and '.join(bounds)}" if bounds else "")
    if origin in (types.UnionType, typing.Union):
        words = [allowed_values(part) for part in parts]
        return (", or " if any("," in word for word in words) else " or ").join(words)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if dataclasses.is_dataclass(hint):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(hint))
    if origin is list:
        return f"a list, each item {allowed_values(parts[0])}"
    if origin is dict:
        keys = f" with keys {allowed_values(parts[0])}" if parts[0] is not str else ""
        return f"a mapping{keys}" + (f", each value {allowed_values(parts[1])}" if parts[1] is not Any else "")
    return str(_TYPES.get(hint) or getattr(hint, "__name__", hint))


hints_of: Callable[[type], dict[str, Any]] = cache(lambda schema: typing.get_type_hints(schema, include_extras=True))
"""Type hint of every field, bounds included."""


@cache
def _validator(schema: Any) -> TypeAdapter[Any]:
    # A list, since pydantic refuses a configuration beside a dataclass but hands it down to one.
    return TypeAdapter(list[schema], config=_STRICT)


def _validate(schema: type[T], values: Mapping[str, Any]) -> T:
    # In strict mode, pydantic takes a mapping for a dataclass only from JSON.
    json = to_json([values], inf_nan_mode="constants", fallback=str)
    return typing.cast(T, _validator(typing.cast(Any, schema)).validate_json(json)[0])


def _without_errors(values: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """``values`` without the keys that are, or that hold, what is wrong."""
    remaining: dict[str, Any] = copy.deepcopy(dict(values))
    for details in error.errors():
        place: Any = remaining
        section, faulty = remaining, ""
        for part in details["loc"][1:]:
            if isinstance(place, dict) and part in place:
                section, faulty = place, str(part)
            elif not (isinstance(place, list) and isinstance(part, int)):
                break
            place = place[part]
        section.pop(faulty, None)
    return remaining


def _bounds_in(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, GroupedMetadata):
            yield from _bounds_in(tuple(item))
        elif type(item) in _BOUNDS:
            yield item


def _renamed(values: Any, renamed: Mapping[str, str], path: str, key: str = "") -> Iterator[tuple[str, str]]:
    """Path and message for every old name in ``values``."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            below, place = _join(key, str(name)), _join(path, str(name))
            if below in renamed and f"{below}={value}" not in renamed:
                yield place, _new_name(place, path, renamed[below])
            else:
                yield from _renamed(value, renamed, place, below)
    elif isinstance(values, list):
        for i, item in enumerate(values):
            yield from _renamed(item, renamed, f"{path}[{i}]", key)
    elif (new := renamed.get(f"{key}={values}")) is not None:
        section = path.rpartition(".")[0]
        yield (
            path,
            _new_name(f"{path}={values}", section, new if {" ", "="} & {*new} else f"{key.split('.')[-1]}={new}"),
        )


def _new_name(old: str, section: str, new: str) -> str:
    return f"{old}: {new}" if " " in new else f"{old} was renamed; write {_join(section, new)}"


def _describe(schema: type, error: ErrorDetails, where: str) -> tuple[str, str]:
    """Path and message of one of pydantic's errors."""
    hint, path, value = schema, where, error["input"]
    keys = [part for part in error["loc"][1:] if part != "[key]"]
    is_unknown = error["type"] == "unexpected_keyword_argument" or error["loc"][-1] == "[key]"
    for key in keys[:-1] if is_unknown else keys:
        hint, path = _step(hint, path, key)
    if is_unknown:
        name, path = str(keys[-1]), _join(path, str(keys[-1]))
        valid = _valid_keys(hint)
        return path, f"unknown key {path!r}; {_nearest(name, valid)}valid here: {', '.join(valid) or 'none'}"
    if error["type"] == "missing":
        return path, f"{path} is missing; it must be {allowed_values(hint)}"
    near = _nearest(value, list(map(str, typing.get_args(hint)))) if error["type"] == "literal_error" else ""
    quote = "; put it in quotes" if error["type"] == "string_type" and isinstance(value, int | float) else ""
    message = f"{path or 'this'} must be {allowed_values(hint)}; {near}got {value!r:.200}{quote}"
    return path, message


def _step(hint: Any, path: str, part: int | str) -> tuple[Any, str]:
    """Type hint and path one step down; both as they are where ``part`` only names a member of a union."""
    if isinstance(part, int):
        return typing.get_args(_only(hint, list, tuple))[0], f"{path}[{part}]"
    if (inner := _only(hint, dict)) is not None:
        return typing.get_args(inner)[1], _join(path, part)
    inner = _dataclass_in(hint)
    return (hint, path) if inner is None or part not in hints_of(inner) else (hints_of(inner)[part], _join(path, part))


def _valid_keys(hint: Any) -> list[str]:
    if (mapping := _only(hint, dict)) is not None:
        return [str(key) for key in typing.get_args(typing.get_args(mapping)[0])]
    return [f.name for f in dataclasses.fields(_dataclass_in(hint))]


def _only(hint: Any, *origins: type) -> Any:
    """The member of ``hint`` (itself, or of ``X | None``) of such an origin."""
    return next((m for m in (hint, *typing.get_args(hint)) if typing.get_origin(m) in origins), None)


def _dataclass_in(hint: Any) -> Any:
    return next((m for m in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(m)), None)


def _nearest(value: Any, valid: list[str]) -> str:
    near = difflib.get_close_matches(str(value), valid, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
