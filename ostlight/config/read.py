"""YAML as it is written, with an error that names the place and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ostlight.errors import ConfigError


def read_mapping(path: Path, what: str = "settings") -> dict[str, Any]:
    """The mapping a YAML file holds.

    Args:
        what: the mapping is of, for messages.

    Raises:
        ConfigError: no UTF-8, no YAML, a key twice in one mapping, or something else than a mapping.
    """
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError([f"not YAML: no text in UTF-8 (byte {error.start}); save it as UTF-8"], str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"not YAML: {one_line(error)}"], str(path)) from error
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise ConfigError([f"the file must hold a mapping of {what}; it holds {held}"], str(path))
    return values


def parse(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        yaml.YAMLError: it is none, or names a key twice: PyYAML would drop the first in silence.
    """
    return yaml.load(text, _Loader)


def one_line(error: yaml.YAMLError) -> str:
    """What PyYAML says, without the picture of the place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{said} (line {mark.line + 1}, column {mark.column + 1})" if mark else said


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in written:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice; remove one", key.start_mark
                )
            written.add(name)
        return super().construct_mapping(node, deep)
