"""Fields of a record with their type checked, so that an error names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.errors import BadRecord


def text(record: Mapping[str, Any], name: str) -> str | None:
    """The field as text; ``None`` where it is missing or null. A ``BadRecord`` where it is something else."""
    value = record.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(name, "text", value)


def items(record: Mapping[str, Any], name: str) -> list[Any]:
    """The field as a list; empty where it is missing or null. A ``BadRecord`` where it is something else."""
    value = record.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise wrong_type(name, "a list", value)


def images(record: Mapping[str, Any]) -> list[Any]:
    """What ``images`` or ``image`` holds, as a list; not yet checked."""
    value = record.get("images")
    if value is None:
        value = record.get("image")
    if value is None or isinstance(value, list):
        return value or []
    return [value]


def wrong_type(name: str, wanted: str, value: Any) -> BadRecord:
    """The error for a field of the wrong type."""
    return BadRecord("bad_field", f"{name!r} must be {wanted}, got {type(value).__name__} {str(value)[:60]!r}", name)
