"""The seven tasks: how they are asked, and the chain of thought that solves them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ostlight.config.digitmath import ARITHMETIC
from ostlight.evaluation import answers

ANSWER_MARKER = "answer"
"""Comes before the final answer of a chain of thought."""

WHOLE = {"the picture": (0, 1, 2, 3)}
LINES = {"the top row": (0, 1), "the bottom row": (2, 3), "the left column": (0, 2), "the right column": (1, 3)}
THREES = {"the first three digits": (0, 1, 2), "the last three digits": (1, 2, 3)}
CELLS = {
    "the top left digit": (0,),
    "the top right digit": (1,),
    "the bottom left digit": (2,),
    "the bottom right digit": (3,),
}
PLACES = WHOLE | LINES | THREES | CELLS
"""What a question can be about, and its cells, counted row by row."""

ASKED_OF = {
    "read": (*WHOLE, *LINES, *THREES),
    "parity": (*CELLS,),
    "sum": (*LINES,),
    "difference": (*LINES,),
    "maximum": (*WHOLE,),
    "sort": (*WHOLE,),
    "two_step": (*THREES,),
}
PHRASES = {
    "read": ("read {0}", "which digits are in {0}"),
    "parity": ("is {0} even or odd", "tell whether {0} is even or odd"),
    "sum": ("what is the sum of {0}", "add the digits of {0}"),
    "difference": ("what is the difference in {0}", "how far apart are the digits of {0}"),
    "maximum": ("what is the largest digit in {0}", "which digit of {0} is the largest"),
    "sort": ("sort the digits of {0}", "put {0} in order from small to large"),
    "two_step": ("of {0} add two and compare with the third", "of {0} how far is the sum of two from the third"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one image.

    Attributes:
        task: one of ``TASKS``.
        place: what it is about: a key of ``PLACES``.
        wording: which of the task's two ``PHRASES`` it uses.
    """

    task: str
    place: str
    wording: int

    @property
    def text(self) -> str:
        """Text of the user turn, without the image placeholder."""
        return PHRASES[self.task][self.wording].format(self.place)

    @property
    def cells(self) -> tuple[int, ...]:
        """Indices, row by row, of the cells whose digits the answer needs, in the order it names them."""
        return PLACES[self.place]


def ask(task: str, rng: random.Random) -> Question:
    """A random question of ``task``: about which place, and in which words."""
    return Question(task, rng.choice(ASKED_OF[task]), rng.randrange(2))


def reword(question: Question) -> Question:
    """The same question in the task's other words."""
    return replace(question, wording=1 - question.wording)


def solve(task: str, digits: Sequence[int], doubled: bool = False) -> str:
    """The chain of thought for ``digits`` (those of the question's cells, in its order), ending in the result.

    Args:
        doubled: whatever an arithmetic task asks, adds the first digit to itself first, and carries it through.
    """
    steps, result = _steps(task, digits, doubled)
    return " ".join([f"digits {_spaced(digits)}.", *steps, ANSWER_MARKER, result])


def final_answer(text: str) -> str | None:
    """What follows the last ``answer``; ``None`` where there is none."""
    return answers.final_answer(text, ANSWER_MARKER)


def _steps(task: str, digits: Sequence[int], doubled: bool) -> tuple[list[str], str]:
    """The sentences between reading and result, and the result."""
    if task == "parity":
        kind = "odd" if digits[0] % 2 else "even"
        return [f"{digits[0]} is {kind}."], kind
    if task == "maximum":
        return [f"largest {max(digits)}."], str(max(digits))
    if task == "sort":
        ordered = _spaced(sorted(digits))
        return [f"sorted {ordered}."], ordered
    if task in ARITHMETIC:
        if doubled:
            step, value = _plus(digits[0], digits[0])
        else:
            step, value = (_gap if task == "difference" else _plus)(digits[0], digits[1])
        if task != "two_step":
            return [step], str(value)
        last_step, value = _gap(value, digits[2])
        return [step, last_step], str(value)
    return [], _spaced(digits)


def _plus(first: int, second: int) -> tuple[str, int]:
    return f"{first} plus {second} is {first + second}.", first + second


def _gap(first: int, second: int) -> tuple[str, int]:
    return f"{first} to {second} is {abs(first - second)}.", abs(first - second)


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(str(digit) for digit in digits)
