"""The seven tasks: how they are asked, and the chain of thought that solves them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ostlight.digitmath.answers import ANSWER_MARK

TASKS = ("read", "parity", "sum", "difference", "maximum", "sort", "two_step")
ARITHMETIC = ("sum", "difference", "two_step")
PICTURE = "the picture"
LINES = {"the top row": (0, 1), "the bottom row": (2, 3), "the left column": (0, 2), "the right column": (1, 3)}
CELLS = {"the top left digit": 0, "the top right digit": 1, "the bottom left digit": 2, "the bottom right digit": 3}
PHRASES = {
    "read": ("read {0}", "which digits are in {0}"),
    "parity": ("is {0} even or odd", "tell whether {0} is even or odd"),
    "sum": ("what is the sum of {0}", "add the digits of {0}"),
    "difference": ("what is the difference in {0}", "how far apart are the digits of {0}"),
    "maximum": ("what is the largest digit in {0}", "which digit of {0} is the largest"),
    "sort": ("sort the digits of {0}", "put {0} in order from small to large"),
    "two_step": ("how far is the sum of {0} from {1}", "add the digits of {0} and compare with {1}"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one picture.

    Attributes:
        task: one of ``TASKS``.
        places: what it speaks of, in the words of ``PICTURE``, ``LINES`` and ``CELLS``.
        wording: which of the task's two ``PHRASES`` it uses.
    """

    task: str
    places: tuple[str, ...]
    wording: int

    @property
    def text(self) -> str:
        """The words of the human turn, without the image mark."""
        return PHRASES[self.task][self.wording].format(*self.places)

    @property
    def cells(self) -> tuple[int, ...]:
        """Indices, row by row, of the cells whose digits the answer needs, in the order it names them."""
        return tuple(cell for place in self.places for cell in cells_of(place))


def cells_of(place: str) -> tuple[int, ...]:
    """The cells of a place, in reading order."""
    if place == PICTURE:
        return (0, 1, 2, 3)
    return LINES[place] if place in LINES else (CELLS[place],)


def ask(task: str, rng: random.Random) -> Question:
    """A random question of ``task``: about which cells, and in which words."""
    line = rng.choice(list(LINES))
    places: tuple[str, ...] = (PICTURE,)
    if task == "read":
        places = (rng.choice((PICTURE, line)),)
    elif task == "parity":
        places = (rng.choice(list(CELLS)),)
    elif task in ("sum", "difference"):
        places = (line,)
    elif task == "two_step":
        places = (line, rng.choice([name for name, cell in CELLS.items() if cell not in LINES[line]]))
    return Question(task, places, rng.randrange(2))


def reword(question: Question) -> Question:
    """The same question in the task's other words."""
    return replace(question, wording=1 - question.wording)


def solve(task: str, digits: Sequence[int], confused: bool = False) -> str:
    """The chain of thought for ``digits`` (those of the question's cells, in its order), ending in the result.

    Args:
        confused: takes plus for minus and minus for plus in the first calculation, and carries it through.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")
    steps, result = _steps(task, digits, confused)
    return " ".join([f"digits {_spaced(digits)}.", *steps, ANSWER_MARK, result])


def _steps(task: str, digits: Sequence[int], confused: bool) -> tuple[list[str], str]:
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
        adds = (task != "difference") != confused
        step, value = (_plus if adds else _minus)(digits[0], digits[1])
        if task != "two_step":
            return [step], str(value)
        last_step, gap = _minus(value, digits[2])
        return [step, last_step], str(gap)
    return [], _spaced(digits)


def _plus(first: int, second: int) -> tuple[str, int]:
    return f"{first} plus {second} is {first + second}.", first + second


def _minus(first: int, second: int) -> tuple[str, int]:
    large, small = max(first, second), min(first, second)
    return f"{large} minus {small} is {large - small}.", large - small


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(str(digit) for digit in digits)
