"""Accuracy of answers as metrics that add up over batches and ranks, one for each question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchmetrics import Metric

from ostlight.evaluation.answers import is_number, option_chosen, same_answer

EXACT, NUMERIC, CHOICE = "exact", "numeric", "choice"
Options = Mapping[str, str]


def question_type(expected: str | None, options: Options) -> str:
    """``choice`` where the question offers options and the expected answer is one of them; ``numeric`` where it is a
    number; else ``exact``."""
    if options and option_chosen(expected, options) is not None:
        return CHOICE
    return NUMERIC if is_number(expected) else EXACT


def is_correct(given: str | None, expected: str | None, options: Options) -> bool:
    """Compares by question type: the same option, the same number, or the same text. A missing answer is wrong."""
    if question_type(expected, options) == CHOICE:
        return option_chosen(given, options) == option_chosen(expected, options)
    return same_answer(given, expected)


class AnswerAccuracy(Metric):
    """Share of correct answers, each compared by its question's type.

    ``update`` takes lists of equal length: final answers as extracted (``None`` where there is none), the expected
    ones, and the options each question offers (left out: none does).

    Args:
        only: the question type to count; ``None`` counts all. Without any question the share is NaN.
    """

    higher_is_better = True
    full_state_update = False
    correct: torch.Tensor
    total: torch.Tensor

    def __init__(self, only: str | None = None) -> None:
        super().__init__()
        self.only = only
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, given: Sequence[str | None], expected: Sequence[str | None], options: Sequence[Options] | None = None
    ) -> None:
        offered = options if options is not None else [{}] * len(expected)
        for g, e, o in zip(given, expected, offered, strict=True):
            if self.only in (None, question_type(e, o)):
                self.correct += is_correct(g, e, o)
                self.total += 1

    def compute(self) -> torch.Tensor:
        return self.correct.float() / self.total


class ExactAccuracy(AnswerAccuracy):
    """Of the questions whose answer is a text: equal, case and outer punctuation aside."""

    def __init__(self) -> None:
        super().__init__(EXACT)


class NumericAccuracy(AnswerAccuracy):
    """Of the questions whose answer is a number: equal as numbers."""

    def __init__(self) -> None:
        super().__init__(NUMERIC)


class ChoiceAccuracy(AnswerAccuracy):
    """Of the questions that offer options: the same option, by its letter or by its text."""

    def __init__(self) -> None:
        super().__init__(CHOICE)


QUESTION_TYPES = {EXACT: ExactAccuracy, NUMERIC: NumericAccuracy, CHOICE: ChoiceAccuracy}
