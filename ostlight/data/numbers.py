"""Numbers as text: a table spells whole numbers as floats where another one is missing."""

from __future__ import annotations

from typing import Any


def whole(value: Any) -> Any:
    """A whole number as ``int``; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def whole_of_text(text: str) -> int | None:
    """The whole number that a text spells (``2``, ``2.0``); ``None`` where it spells none."""
    head, _, decimals = text.strip().partition(".")
    return int(head) if head.isascii() and head.isdecimal() and not decimals.strip("0") else None
