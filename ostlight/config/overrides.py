"""Settings that are changed beside the configuration: as text, as a mapping, or as a list of texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from ostlight.config.read import one_line, parse
from ostlight.errors import ConfigError

Override = str | Mapping[str, Any] | Sequence[str]
"""``"budget.fraction=0.2"``, ``{"budget": {"fraction": 0.2}}``, ``{"budget.fraction": 0.2}``, or a list of texts."""

OVERRIDES = "overrides"
"""Source of a ``ConfigError`` about several of them."""


def override_texts(overrides: Sequence[Override]) -> tuple[str, ...]:
    """The overrides as ``key=value``, one for each setting, as the command line takes them.

    A mapping in a mapping is a section, of which the settings named are changed and the others stay.

    Raises:
        ConfigError: neither text, nor a mapping, nor a list of texts; a value that YAML cannot hold.
    """
    texts: list[str] = []
    for override in overrides:
        if isinstance(override, str):
            texts.append(override)
        elif isinstance(override, Mapping):
            texts += _texts_of(override, "")
        elif isinstance(override, list | tuple) and all(isinstance(text, str) for text in override):
            texts += override
        else:
            raise ConfigError(
                [f"an override is text, a mapping or a list of texts; got {type(override).__name__} {override!r:.80}"],
                OVERRIDES,
            )
    return tuple(texts)


def _texts_of(values: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            yield from _texts_of(value, key)
            continue
        try:
            yield f"{key}={json.dumps(value, ensure_ascii=False, default=_plain)}"
        except (TypeError, ValueError) as error:
            raise ConfigError([f"{key} is {value!r:.80}, no value of a setting ({error})"], OVERRIDES) from error


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return value.tolist()
    raise TypeError(f"it is of type {type(value).__name__}")


def split_override(override: str) -> tuple[list[str], Any]:
    """Key, as its parts, and value of ``key=value``.

    Raises:
        ConfigError: not written so; the message names the override.
    """
    key, separator, text = override.partition("=")
    path = key.split(".")
    if not separator or not all(path):
        raise ConfigError(["an override is written key=value, as budget.fraction=0.5"], source_of(override))
    if not text.strip():
        raise ConfigError([f"{key} has no value; write {key}=null to unset it"], source_of(override))
    try:
        return path, parse(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"the value is not YAML: {one_line(error)}"], source_of(override)) from error


def source_of(override: str) -> str:
    """What a ``ConfigError`` names as the source of a problem that an override makes."""
    return f"override {override[:200]}"


def blamed(
    problems: Sequence[str], source: str, overrides: Sequence[str], without: Callable[[], Sequence[str]] = tuple
) -> ConfigError:
    """The error for problems of which some come from overrides and not from the file: each of those names its own.

    Args:
        problems: all of them.
        source: the file.
        overrides: ``key=value``.
        without: the problems that the file has by itself.
    """
    own = {*without()} if overrides else set()
    by_override = {problem: text for problem in problems if problem not in own and (text := _of(problem, overrides))}
    if not by_override:
        return ConfigError(list(problems), source)
    if len(by_override) == len(problems):
        texts = {*by_override.values()}
        return ConfigError(list(problems), source_of(texts.pop()) if len(texts) == 1 else OVERRIDES)
    named = [
        f"{problem} (override {by_override[problem]})" if problem in by_override else problem for problem in problems
    ]
    return ConfigError(named, source)


def _of(problem: str, overrides: Sequence[str]) -> str | None:
    """The last override whose key the problem begins with, or that lies in the section it begins with."""
    begin = problem.removeprefix("unknown key ").lstrip("'\"")
    for override in reversed(overrides):
        key = override.partition("=")[0]
        path = re.split(r"[^\w.\[\]-]", begin, maxsplit=1)[0].rstrip(".:")
        if path and (_is_within(path, key) or _is_within(key, path)):
            return override
    return None


def _is_within(path: str, section: str) -> bool:
    return path == section or path.startswith((f"{section}.", f"{section}["))
