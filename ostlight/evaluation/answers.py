"""When two answers are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

ALL = "all"
"""The group of all questions."""
OPTION = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Ha-h])\)|([A-H])[.):])\s*")
LETTER = re.compile(r"\(?([A-Ha-h])(?:[).:]\s*|$)(.*)", re.DOTALL)
LEAD_IN = re.compile(r"(?:.*[.,;!?] )?(.*\b(?:answer|choice|option)\b(?: is\b)?[ :]*)(?=\S)", re.IGNORECASE)
DENIAL = re.compile(r"\b(?:not|never|wrong|incorrect)\b|n['’]t\b", re.IGNORECASE)
BOXED = r"\boxed{"
BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)", re.DOTALL)
SEPARATOR = re.compile(r"(?:[ :=]|\.{2,}|\.(?!\d))+")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
MINUS = "\u2212"


def final_answer(text: str, marker: str | None) -> str | None:
    """What follows the last ``marker``, single-spaced, without closing punctuation and the stars of bold type.

    The marker counts only as a word of its own; a colon or an equals sign may join it to the answer (``Answer:12``).
    Without one: what the last ``\\boxed{}`` holds, else the whole text.

    Returns:
        ``None`` where the marker does not occur or nothing follows it: no answer was given.
    """
    if marker is None:
        boxed = _last_boxed(text)
        return _spaced(text if boxed is None else boxed) or None
    spaced, word = _spaced(text), re.escape(" ".join(marker.split()))
    markers = list(re.finditer(rf"(?<!\S)[.,:=*]*{word}(?:[.,:=]*(?= |$)|[:=]+)", spaced, re.IGNORECASE))
    if not markers:
        return None
    answer = spaced[markers[-1].end() :].rstrip(" .:=")
    begin = SEPARATOR.match(answer)
    return answer[begin.end() if begin else 0 :] or None


def _spaced(text: str) -> str:
    return " ".join(BOLD.sub(r"\1", text).split())


def _last_boxed(text: str) -> str | None:
    """What the last ``\\boxed{}`` holds whose brace is closed, braces inside and all."""
    end = len(text)
    while (begin := text.rfind(BOXED, 0, end)) >= 0:
        start, depth = begin + len(BOXED), 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start:at]
        end = begin
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
    """The letter an answer means: by its letter (``B``, ``(b)``, ``B. a horse``), or by the option's whole text; or the
    same behind ``the answer is``, ``option`` or ``choice``, unless these are denied.

    Returns:
        ``None`` where it means none of them, or where letter and text contradict each other.
    """
    if answer is None:
        return None
    answer = _spaced(answer)
    if (plainly := _option(answer, options)) is not None:
        return plainly
    lead_in = LEAD_IN.match(answer)
    if lead_in is None or DENIAL.search(lead_in.group(1)):
        return None
    return _option(answer[lead_in.end() :], options)


def _option(answer: str, options: Mapping[str, str]) -> str | None:
    by_text = [letter for letter, text in options.items() if same_answer(answer, text)]
    if len(by_text) == 1:
        return by_text[0]
    by_letter = LETTER.fullmatch(answer)
    if by_letter is None or by_letter.group(1).upper() not in options:
        return None
    letter, rest = by_letter.group(1).upper(), by_letter.group(2)
    return letter if not _plain(rest) or same_answer(rest, options[letter]) else None


def is_number(text: str | None) -> bool:
    """Whether a text is a number: ``7``, ``-1,024.5``, ``.5``, ``1/2``, ``\\frac{1}{2}``."""
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
    compact = text.replace(",", "").replace(" ", "").replace(MINUS, "-").rstrip(".")
    compact = FRACTION.sub(r"\1/\2", compact)
    if not NUMBER.fullmatch(compact):
        return None
    try:
        return Fraction(compact)
    except (ValueError, ZeroDivisionError):
        return None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,:;!?\"'")
