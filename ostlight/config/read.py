"""YAML files, with errors that name the line and the fix."""

from __future__ import annotations

import itertools
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ostlight.errors import ConfigError

log = logging.getLogger(__name__)

CHECKSUM = "# checksum of what follows:"
"""Begins the first line of a configuration that ostlight wrote."""

MOST_VALUES = 100_000
"""In one file."""


def read_mapping(path: Path, what: str = "settings") -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        what: what the mapping holds, for messages.

    Raises:
        ConfigError: not UTF-8, not YAML, a repeated key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = parse(text)
    except UnicodeDecodeError as error:
        raise ConfigError([f"not YAML: not UTF-8 text (byte {error.start}); save it as UTF-8"], str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"not YAML: {one_line(error)}"], str(path)) from error
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise ConfigError([f"the file must hold a mapping of {what}; it holds {held}"], str(path))
    if _is_changed(text):
        log.warning(
            f"{path} is not what ostlight wrote: it is damaged, unless somebody has edited it; then remove its line "
            f"'{CHECKSUM} ...'"
        )
    return values


def with_checksum(text: str) -> str:
    """Returns a YAML file's text below a comment with its checksum; ``read_mapping`` warns where they do not agree."""
    return f"{CHECKSUM} {zlib.crc32(text.encode()):08x}\n{text}"


def _is_changed(text: str) -> bool:
    head, checksum, rest = text.partition(CHECKSUM)
    written, _, below = rest.partition("\n")
    return bool(checksum) and not head.strip() and written.strip() != f"{zlib.crc32(below.encode()):08x}"


def parse(text: str) -> Any:
    """Plain data from YAML; ``1e-5`` is a number, unlike in PyYAML.

    Raises:
        yaml.YAMLError: not YAML, a repeated key (PyYAML would silently drop the first), or so many values, or nested so
            deeply, that it is no configuration (aliases of aliases grow without bounds).
    """
    try:
        values = yaml.load(text, _Loader)
        count = sum(1 for _ in itertools.islice(_values_in(values), MOST_VALUES + 1))
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or an alias holds itself") from error
    if count > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, those of aliases included")
    return values


def _values_in(value: Any) -> Iterator[Any]:
    yield value
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for one in inner:
        yield from _values_in(one)


def one_line(error: yaml.YAMLError) -> str:
    """PyYAML's message in one line, without the excerpt of the file."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    message = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{message} (line {mark.line + 1}, column {mark.column + 1})" if mark else message


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice; remove one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
