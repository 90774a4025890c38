"""The seven tasks: how they are asked, and the chain of thought that solves them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ostlight.digitmath.answers import ANSWER_MARK

TASKS = ("read", "parity", "sum", "difference", "maximum", "sort", "two_step")
ARITHMETIC = ("sum", "difference", "two_step")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")

ROWS = {"the picture": (0, 1, 2, 3), "the top row": (0, 1), "the bottom row": (2, 3)}
PHRASES = {
    "read": ("read {0}", "which digits are in {0}"),
    "parity": ("is the {0} digit even or odd", "tell whether the {0} digit is even or odd"),
    "sum": ("what is the {0} digit plus the {1} digit", "add the {0} digit and the {1} digit"),
    "difference": (
        "what is the difference between the {0} digit and the {1} digit",
        "how far apart are the {0} digit and the {1} digit",
    ),
    "maximum": ("what is the largest digit", "which of the digits is the largest"),
    "sort": ("sort the digits from small to large", "put the digits in order"),
    "two_step": (
        "how far is the {2} digit from the sum of the {0} digit and the {1} digit",
        "add the {0} digit and the {1} digit then compare with the {2} digit",
    ),
}
OPERANDS = {"parity": 1, "sum": 2, "difference": 2, "two_step": 3}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one picture.

    Attributes:
        task: one of ``TASKS``.
        text: the words of the human turn, without the image mark.
        cells: indices into ``POSITIONS`` of the cells the answer needs, in the order it names them.
    """

    task: str
    text: str
    cells: tuple[int, ...]


def ask(task: str, rng: random.Random) -> Question:
    """A random question of ``task``: which cells, and in which words."""
    if task == "read":
        place, cells = rng.choice(list(ROWS.items()))
        return Question(task, rng.choice(PHRASES[task]).format(place), cells)
    if task in OPERANDS:
        chosen = tuple(rng.sample(range(len(POSITIONS)), OPERANDS[task]))
        return Question(task, _word(task, chosen, rng), chosen)
    return Question(task, rng.choice(PHRASES[task]), (0, 1, 2, 3))


def ask_again(question: Question, rng: random.Random) -> Question:
    """The same question, possibly in other words."""
    if question.task == "read":
        place = next(words for words, cells in ROWS.items() if cells == question.cells)
        return Question(question.task, rng.choice(PHRASES["read"]).format(place), question.cells)
    return Question(question.task, _word(question.task, question.cells, rng), question.cells)


def solve(task: str, digits: Sequence[int], slip: int = 0) -> str:
    """The chain of thought for ``digits`` (those of the question's cells, in its order), ending in the result.

    Args:
        slip: added to the first calculation of an arithmetic task, and carried through: 0 for a right answer.
    """
    if task == "read":
        return _finish(f"digits {_spaced(digits)}.", _spaced(digits))
    if task == "parity":
        kind = "odd" if digits[0] % 2 else "even"
        return _finish(f"{digits[0]} is {kind}.", kind)
    if task == "sum":
        total = digits[0] + digits[1] + slip
        return _finish(f"{digits[0]} plus {digits[1]} is {total}.", str(total))
    if task == "difference":
        step, gap = _subtract(digits[0], digits[1], slip)
        return _finish(step, str(gap))
    if task == "maximum":
        return _finish(f"digits {_spaced(digits)}. largest {max(digits)}.", str(max(digits)))
    if task == "sort":
        ordered = _spaced(sorted(digits))
        return _finish(f"digits {_spaced(digits)}. sorted {ordered}.", ordered)
    if task == "two_step":
        total = digits[0] + digits[1] + slip
        step, gap = _subtract(total, digits[2], 0)
        return _finish(f"{digits[0]} plus {digits[1]} is {total}. {step}", str(gap))
    raise ValueError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")


def _word(task: str, cells: tuple[int, ...], rng: random.Random) -> str:
    return rng.choice(PHRASES[task]).format(*(POSITIONS[cell] for cell in cells))


def _subtract(first: int, second: int, slip: int) -> tuple[str, int]:
    large, small = max(first, second), min(first, second)
    return f"{large} minus {small} is {large - small + slip}.", large - small + slip


def _finish(chain: str, result: str) -> str:
    return f"{chain} {ANSWER_MARK} {result}"


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(str(digit) for digit in digits)
