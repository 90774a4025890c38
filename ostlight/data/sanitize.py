"""Text from the data, made safe to print on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns ``text`` with control and direction-changing characters written as escapes, newlines aside."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
