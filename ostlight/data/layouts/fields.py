"""Fields taken out of a record with their type checked, so that a fault is named where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.errors import BadRecord


def text(record: Mapping[str, Any], name: str) -> str | None:
    """The field as text; ``None`` where it is missing or null.

    Raises:
        BadRecord: ``bad_field``.
    """
    value = record.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(name, "text", value)


def items(record: Mapping[str, Any], name: str) -> list[Any]:
    """The field as a list; empty where it is missing or null.

    Raises:
        BadRecord: ``bad_field``.
    """
    value = record.get(name)
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise wrong_type(name, "a list", value)


def images(record: Mapping[str, Any]) -> list[Any]:
    """What stands in ``image`` or ``images``, as a list; not yet checked."""
    for name in ("images", "image"):
        value = record.get(name)
        if value is not None:
            return list(value) if isinstance(value, list) else [value]
    return []


def wrong_type(name: str, wanted: str, value: Any) -> BadRecord:
    """The error for a field of the wrong type."""
    return BadRecord("bad_field", f"{name!r} must be {wanted}, got {type(value).__name__} {str(value)[:60]!r}", name)
