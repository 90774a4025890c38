"""When two answers are the same."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str, marker: str | None) -> str | None:
    """What follows the last ``marker``, single-spaced and without closing punctuation; the whole text without a marker.

    The marker counts only as a word of its own.

    Returns:
        ``None`` where the marker does not occur or nothing follows it: no answer was given.
    """
    words = text.split()
    if marker is None:
        return " ".join(words) or None
    for k in range(len(words) - 1, -1, -1):
        if words[k].strip(".,:=").lower() == marker.lower():
            return " ".join(words[k + 1 :]).strip(" .:=") or None
    return None


def same_answer(given: str | None, expected: str | None) -> bool:
    """Equal as numbers where both are numbers, else equal as text, case and outer punctuation aside."""
    if given is None or expected is None:
        return False
    numbers = _number(given), _number(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(given) == _plain(expected)


def _number(text: str) -> Fraction | None:
    compact = text.replace(",", "").replace(" ", "").rstrip(".")
    if not NUMBER.fullmatch(compact):
        return None
    try:
        return Fraction(compact)
    except (ValueError, ZeroDivisionError):
        return None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,:;!?\"'")
