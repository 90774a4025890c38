"""What comes from the data, on a terminal."""

from __future__ import annotations


def harmless(text: str) -> str:
    """Control and direction-turning characters are spelled out, not obeyed."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
