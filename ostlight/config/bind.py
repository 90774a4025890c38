"""Plain data to checked dataclasses: pydantic checks types and bounds, this module words what it finds.

A schema is a standard dataclass. Types and bounds are annotations (``Annotated[int, Ge(1)]``, ``Literal["a", "b"]``);
rules over several fields are a method ``problems()`` or the class attribute ``alternatives``, both optional.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from ostlight.errors import ConfigError
from ostlight.suggest import did_you_mean

T = TypeVar("T")

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
ABSURD = 1_000_000_000
"""Upper bounds from here on are named only to who passes them."""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
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
    problems = dict(_renamed_keys(values, renamed or {}, where))
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
        for problem in _rule_violations(settings, where)
        if not any(path.startswith(problem.split()[0].rstrip(":")) for path in problems)
    ]
    if problems or rules:
        raise ConfigError([*_innermost(problems), *rules], source)
    return settings


def _innermost(problems: Mapping[str, str]) -> list[str]:
    """The messages, without those for a value as a whole of which a part is named too: it may be of several types."""
    return [
        message
        for path, message in problems.items()
        if not any(other.startswith((f"{path}.", f"{path}[")) for other in problems if path)
    ]


def _rule_violations(settings: Any, where: str = "") -> Iterator[str]:
    """Violations of the rules over several fields, in ``settings`` and all that is nested in it."""
    if isinstance(settings, list):
        for i, item in enumerate(settings):
            yield from _rule_violations(item, f"{where}[{i}]")
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
        yield from _rule_violations(getattr(settings, f.name), _join(where, f.name))


def allowed_values(hint: Any) -> str:
    """A type hint in words that a YAML author knows: ``a whole number, at least 1, or null``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        limits = [(word, getattr(bound, name, None)) for bound in parts[1:] for name, word in _BOUNDS.items()]
        bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None and limit < ABSURD)
        return ", ".join(filter(None, [allowed_values(parts[0]), bounds]))
    if origin in (types.UnionType, typing.Union):
        words = [allowed_values(part) for part in parts]
        return (", or " if any("," in word for word in words) else " or ").join(words)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if dataclasses.is_dataclass(hint):
        return "a mapping with " + ", ".join(_valid_keys(hint))
    if origin is list:
        return f"a list, each item {allowed_values(parts[0])}"
    if origin is dict:
        keys = f" with keys {allowed_values(parts[0])}" if parts[0] is not str else ""
        return f"a mapping{keys}" + (f", each value {allowed_values(parts[1])}" if parts[1] is not Any else "")
    return str(_TYPES.get(hint) or getattr(hint, "__name__", hint))


@cache
def hints_of(schema: type) -> dict[str, Any]:
    """Type hint of every field, bounds included."""
    return typing.get_type_hints(schema, include_extras=True)


def dataclass_in(hint: Any) -> Any:
    """The dataclass that ``hint`` is or holds: ``X``, ``X | None``, ``list[X]``; ``None`` where there is none."""
    return next((m for m in _nested(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def _members(hint: Any) -> tuple[Any, ...]:
    return hint, *typing.get_args(hint)


def _nested(hint: Any) -> Iterator[Any]:
    """The hint and all in it, at any depth (``list[str | X] | None``)."""
    yield hint
    for part in typing.get_args(hint):
        yield from _nested(part)


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


def _renamed_keys(values: Any, renamed: Mapping[str, str], where: str) -> Iterator[tuple[str, str]]:
    """Path and message for every old name in ``values``."""
    for path, key, value in _entries(values, where):
        section, name = path.rpartition(".")[0], key.rpartition(".")[2]
        if (new := renamed.get(f"{key}={value}")) is not None:
            old, new = f"{path}={value}", new if {" ", "="} & {*new} else f"{name}={new}"
        elif key in renamed and not path.endswith("]"):
            old, new = path, renamed[key]
        else:
            continue
        yield path, f"{old}: {new}" if " " in new else f"{old} was renamed; write {_join(section, new)}"


def _entries(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Everything nested in ``value``, with its path and its key, which is the path without ``where`` and indices."""
    yield path, key, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _entries(inner, _join(path, str(name)), _join(key, str(name)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _entries(inner, f"{path}[{i}]", key)


def _describe(schema: type, error: ErrorDetails, where: str) -> tuple[str, str]:
    """Path and message of one of pydantic's errors."""
    hint, path, value = schema, where, error["input"]
    keys = [part for part in error["loc"][1:] if part != "[key]"]
    is_unknown = error["type"] == "unexpected_keyword_argument" or error["loc"][-1] == "[key]"
    for key in keys[:-1] if is_unknown else keys:
        inner = _inner_hint(hint, key)
        if inner is not None:
            hint, path = inner, f"{path}[{key}]" if isinstance(key, int) else _join(path, key)
    if is_unknown:
        name, path = str(keys[-1]), _join(path, str(keys[-1]))
        valid = _valid_keys(hint)
        meant = did_you_mean(name, valid)
        if not meant and "options" in valid:
            meant = f"for an option of the selector write {path.removesuffix(name)}options.{name}; "
        return path, f"unknown key {path!r}; {meant}valid here: {', '.join(valid) or 'none'}"
    if error["type"] == "missing":
        return path, f"{path} is missing; it must be {allowed_values(hint)}"
    near = did_you_mean(value, map(str, typing.get_args(hint))) if error["type"] == "literal_error" else ""
    quote = "; put it in quotes" if error["type"] == "string_type" and isinstance(value, int | float) else ""
    most = error.get("ctx", {}).get("le", 0)
    limit = f", at most {most:,}" if error["type"] == "less_than_equal" and most >= ABSURD else ""
    return path, f"{path or 'this'} must be {allowed_values(hint)}{limit}; {near}got {value!r:.200}{quote}"


def alternatives_at(schema: Any, path: Sequence[str]) -> tuple[str, ...]:
    """The keys of which the section at ``path`` (keys from the outside in) takes one; empty where there are none."""
    for key in path:
        schema = _inner_hint(schema, key)
    return getattr(dataclass_in(schema), "alternatives", ())


def takes_only_text(schema: Any, path: Sequence[str]) -> bool:
    """Whether the setting at ``path`` (keys from the outside in) is text, or text or null, and nothing else."""
    for key in path:
        schema = _inner_hint(schema, key)
    return schema is not None and {*(typing.get_args(schema) or (schema,))} <= {str, type(None)}


def _inner_hint(hint: Any, key: int | str) -> Any:
    """Type hint of an item of a value; ``None`` where ``key`` names a member of a union instead."""
    if (schema := dataclass_in(hint)) is not None and not isinstance(key, int):
        return hints_of(schema).get(key)
    for member in _members(hint):
        if typing.get_origin(member) in (list, tuple) and isinstance(key, int):
            return typing.get_args(member)[0]
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1]
    return None


def _valid_keys(hint: Any) -> list[str]:
    if (schema := dataclass_in(hint)) is not None:
        return [f.name for f in dataclasses.fields(schema) if not f.metadata.get("hidden")]
    mapping = next(member for member in _members(hint) if typing.get_origin(member) is dict)
    return [str(key) for key in typing.get_args(typing.get_args(mapping)[0])]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
