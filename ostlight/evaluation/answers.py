"""Extracts final answers and compares them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from ostlight.data.sample import IMAGE_PLACEHOLDER

ALL = "all"
"""The group of all questions."""
QUESTION_TYPES = EXACT, NUMERIC, CHOICE = "exact", "numeric", "choice"
OPTION = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Za-z])\)|([A-Z])[.):])\s*")
LAST_USUAL = "H"
"""Letters after it are options only where all before them are (``(x)`` and ``U.`` stand in questions too)."""
LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]\s*|$)(.*)", re.DOTALL)
LEAD_IN = re.compile(r"(?:.*[.,;!?] )?(.*\b(?:answer|choice|option)\b(?: is\b)?[ :]*)(?=\S)", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(?:not|cannot|never|neither|nor|none|no(?! doubt)|wrong|incorrect|except|(?:anything|all|everything) but"
    r"|rul(?:e|es|ed|ing) out|eliminat\w+|exclud\w+)\b|n['’]t\b",
    re.IGNORECASE,
)
BOXED = r"\boxed{"
BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)", re.DOTALL)
SEPARATOR = re.compile(r"(?:[ :=]|\.{2,}|\.(?!\d))+")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
GROUPED = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
"""Thousands: ``1,024``, ``12 000``."""
MIXED = re.compile(r"([-+]?\d+) +(\d+/\d+)")
"""``1 1/2``."""
FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
MINUS = "\u2212"
WITH_UNIT = re.compile(rf"([-+{MINUS}]?[\d., /]*\d) *([^\d\s].*)", re.DOTALL)
"""``1,200 km``, ``50%``."""
BEFORE_TEXT = re.compile(r"(?:[ ,:;!?\"']|\.(?!\d))+")
"""Punctuation before a text; the point of ``.5`` is none."""


def final_answer(text: str, marker: str | None) -> str | None:
    """Returns the text after the last ``marker``, single-spaced, without closing punctuation and bold's asterisks.

    The marker counts only as a separate word; a colon or an equals sign may join it to the answer (``Answer:12``).
    Without a marker, the answer is the content of the last ``\\boxed{}``, else the whole text.

    Returns:
        ``None`` where the marker does not occur or nothing follows it.
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
    """Returns the content of the last ``\\boxed{}`` whose brace is closed, nested braces included."""
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
    """Returns the options of a question by letter, written ``(A) ...``, ``A. ...``, ``A) ...`` or ``A: ...``.

    Of several lists, as examples before the question have them, the last. Where no option before the last one takes
    several lines, neither does that: what follows asks for the answer.

    Returns:
        Empty unless there are at least two, with consecutive letters from A.
    """
    matches: dict[str, re.Match[str]] = {}
    is_list = True
    for match in OPTION.finditer(question):
        letter = (match.group(1) or match.group(2)).upper()
        if letter == "A":
            matches, is_list = {letter: match}, True
        elif letter == chr(ord("A") + len(matches)):
            matches[letter] = match
        elif letter <= LAST_USUAL:
            is_list = False
    if len(matches) < 2 or not is_list:
        return {}
    ends = [*(m.start() for m in list(matches.values())[1:]), len(question)]
    texts = [question[m.end() : end].strip() for m, end in zip(matches.values(), ends, strict=True)]
    if not any("\n" in text for text in texts[:-1]):
        texts[-1] = texts[-1].partition("\n")[0]
    return {letter: _plain(text.replace(IMAGE_PLACEHOLDER, "")) for letter, text in zip(matches, texts, strict=True)}


def option_chosen(answer: str | None, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option an answer names, by letter (``B``, ``(b)``, ``B. a horse``) or by its text.

    The answer may follow ``the answer is``, ``option`` or ``choice``, unless these are negated.

    Returns:
        ``None`` where it names no option, or where letter and text contradict each other.
    """
    if answer is None:
        return None
    answer = _spaced(answer)
    if (letter := _option(answer, options)) is not None:
        return letter
    lead_in = LEAD_IN.match(answer)
    if lead_in is None or NEGATION.search(lead_in.group(1)):
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


def question_type(expected: str | None, options: Mapping[str, str]) -> str:
    """Returns ``choice`` if the expected answer is one of the question's options, ``numeric`` if it is a number, else
    ``exact``."""
    if options and option_chosen(expected, options) is not None:
        return CHOICE
    return NUMERIC if expected is not None and _number(expected) is not None else EXACT


def is_correct(given: str | None, expected: str | None, options: Mapping[str, str]) -> bool:
    """Returns whether an answer is the expected option, number or text, by question type. A missing answer is wrong."""
    if question_type(expected, options) == CHOICE:
        return option_chosen(given, options) == option_chosen(expected, options)
    return same_answer(given, expected)


def same_answer(given: str | None, expected: str | None) -> bool:
    """Returns whether two answers are equal: as numbers if both are numbers, with the same text behind if they have
    units, else as text.

    Case and outer punctuation of texts are ignored, unless there is nothing else.
    """
    if given is None or expected is None:
        return False
    numbers = _number(given), _number(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    texts = _plain(given), _plain(expected)
    if not any(texts):
        return given.split() == expected.split()
    return texts[0] == texts[1] or _same_quantity(*texts)


def _same_quantity(given: str, expected: str) -> bool:
    """Returns whether both are a number and a unit, the same ones."""
    parts = WITH_UNIT.fullmatch(given), WITH_UNIT.fullmatch(expected)
    if parts[0] is None or parts[1] is None or parts[0][2] != parts[1][2]:
        return False
    numbers = _number(parts[0][1]), _number(parts[1][1])
    return None not in numbers and numbers[0] == numbers[1]


def _number(text: str) -> Fraction | None:
    """Returns the number that a text is, ``7``, ``-1,024.5``, ``12 000``, ``.5``, ``1/2``, ``1 1/2`` or
    ``\\frac{1}{2}``, else ``None``: commas and spaces count only where they group thousands."""
    plain = FRACTION.sub(r" \1/\2", text.replace(MINUS, "-").strip()).strip().rstrip(".")
    plain = re.sub(r"^([-+]) +", r"\1", plain)
    if GROUPED.fullmatch(plain):
        plain = plain.replace(",", "").replace(" ", "")
    mixed = MIXED.fullmatch(plain)
    whole, part = (mixed[1], mixed[2]) if mixed else ("0", plain)
    if not NUMBER.fullmatch(part):
        return None
    try:
        return Fraction(whole) + (-1 if whole.startswith("-") else 1) * Fraction(part)
    except (ValueError, ZeroDivisionError):
        return None


def _plain(text: str) -> str:
    spaced = " ".join(text.lower().split()).rstrip(" .,:;!?\"'")
    begin = BEFORE_TEXT.match(spaced)
    return spaced[begin.end() if begin else 0 :]
