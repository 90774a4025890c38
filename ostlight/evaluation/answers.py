"""When two answers are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

OPTION = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Ha-h])\)|([A-H])[.):])\s*")
LETTER = re.compile(r"\(?([A-Ha-h])(?:[).:]\s*|$)(.*)", re.DOTALL)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str, marker: str | None) -> str | None:
    """What follows the last ``marker``, single-spaced and without closing punctuation.

    The marker counts only as a word of its own. Without one: what the last ``\\boxed{}`` holds, else the whole text.

    Returns:
        ``None`` where the marker does not occur or nothing follows it: no answer was given.
    """
    words = text.split()
    if marker is None:
        boxed = BOXED.findall(text)
        return " ".join(boxed[-1].split() if boxed else words) or None
    for k in range(len(words) - 1, -1, -1):
        if words[k].strip(".,:=").lower() == marker.lower():
            return " ".join(words[k + 1 :]).strip(" .:=") or None
    return None


def options_of(question: str) -> dict[str, str]:
    """The options a question offers as ``(A) ...``, ``A. ...``, ``A) ...`` or ``A: ...``, by letter.

    Returns:
        Empty where it offers none: the letters must begin at A, follow each other, and be two at least.
    """
    found = list(OPTION.finditer(question))
    ends = [*(m.start() for m in found[1:]), len(question)]
    letters = [(m.group(1) or m.group(2)).upper() for m in found]
    if len(letters) < 2 or letters != [chr(ord("A") + k) for k in range(len(letters))]:
        return {}
    return {k: _plain(question[m.end() : end]) for k, m, end in zip(letters, found, ends, strict=True)}


def option_chosen(answer: str | None, options: Mapping[str, str]) -> str | None:
    """The letter an answer means: by its letter (``B``, ``(b)``, ``B. a horse``), or by the option's whole text.

    Returns:
        ``None`` where it means none of them, or where letter and text contradict each other.
    """
    if answer is None:
        return None
    by_text = [letter for letter, text in options.items() if same_answer(answer, text)]
    if len(by_text) == 1:
        return by_text[0]
    said = LETTER.fullmatch(answer.strip())
    if said is None or said.group(1).upper() not in options:
        return None
    letter, rest = said.group(1).upper(), said.group(2)
    return letter if not _plain(rest) or same_answer(rest, options[letter]) else None


def is_number(text: str | None) -> bool:
    """Whether a text is a number: ``7``, ``-1,024.5``, ``1/2``."""
    return text is not None and _number(text) is not None


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
