"""JSON objects with a checksum of what they hold: a digit that has changed makes other JSON, which reads well."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostlight.data.atomic import atomic_write_text

CHECKSUM = "checksum"
"""Key of the checksum in an object. Without it an object is taken as it is."""


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes an object with its checksum: whole, or not at all."""
    atomic_write_text(path, json.dumps(with_checksum(values), indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Returns the object that ``write_json`` wrote.

    Raises:
        OSError, ValueError: the file is not there, holds no object, or another one than was written. To be called
            inside ``ostlight.errors.reading_back`` or ``read_if_whole``.
    """
    return parse_checked(Path(path).read_text(encoding="utf-8"))


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object with its checksum as the last entry."""
    return {**values, CHECKSUM: _checksum(values)}


def parse_checked(text: str) -> dict[str, Any]:
    """Returns the object in a text, without its checksum.

    Raises:
        ValueError: no object, or another one than was written.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__} instead of an object")
    written = values.pop(CHECKSUM, None)
    if written is not None and written != _checksum(values):
        raise ValueError(f"not what was written; if you changed it on purpose, remove its {CHECKSUM!r}")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    # Keys that are no texts become texts in JSON.
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
