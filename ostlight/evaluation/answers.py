"""When two answers are the same."""

from __future__ import annotations

import re
from fractions import Fraction

import torch
from torchmetrics import Metric

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str, marker: str | None) -> str | None:
    """What follows the last ``marker``, or the whole text where no marker is set.

    Returns:
        ``None`` where the marker does not occur or nothing follows it: no answer was given.
    """
    if marker is None:
        return text.strip() or None
    _, found, rest = text.rpartition(marker)
    answer = rest.strip(" \n\t:.=").strip()
    return answer if found and answer else None


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


class AnswerAccuracy(Metric):
    """Share of answers that are right; a missing answer is wrong.

    ``update`` takes two lists of equal length: final answers as extracted (``None`` where there is none), and the
    expected ones.
    """

    higher_is_better = True
    full_state_update = False
    correct: torch.Tensor
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, given: list[str | None], expected: list[str | None]) -> None:
        self.correct += sum(same_answer(g, e) for g, e in zip(given, expected, strict=True))
        self.total += len(expected)

    def compute(self) -> torch.Tensor:
        return self.correct.float() / self.total
