"""Accuracy of answers as torchmetrics, one for each question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchmetrics import Metric

from ostlight.evaluation.answers import is_number, option_chosen, same_answer

EXACT, NUMERIC, CHOICE = "exact", "numeric", "choice"
Options = Mapping[str, str]


def question_type(expected: str | None, options: Options) -> str:
    """Returns ``choice`` if the expected answer is one of the question's options, ``numeric`` if it is a number, else
    ``exact``."""
    if options and option_chosen(expected, options) is not None:
        return CHOICE
    return NUMERIC if is_number(expected) else EXACT


def is_correct(given: str | None, expected: str | None, options: Options) -> bool:
    """Returns whether an answer is the expected option, number or text, by question type. A missing answer is wrong."""
    if question_type(expected, options) == CHOICE:
        return option_chosen(given, options) == option_chosen(expected, options)
    return same_answer(given, expected)


class AnswerAccuracy(Metric):
    """Share of correct answers, compared by question type.

    ``update`` takes lists of equal length: the extracted final answers (``None`` if missing), the expected answers, and
    optionally the options of each question.

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
    """Accuracy on questions whose answer is a text; case and outer punctuation are ignored."""

    def __init__(self) -> None:
        super().__init__(EXACT)


class NumericAccuracy(AnswerAccuracy):
    """Accuracy on questions whose answer is a number."""

    def __init__(self) -> None:
        super().__init__(NUMERIC)


class ChoiceAccuracy(AnswerAccuracy):
    """Accuracy on multiple-choice questions; an option is named by letter or by text."""

    def __init__(self) -> None:
        super().__init__(CHOICE)


QUESTION_TYPES = {EXACT: ExactAccuracy, NUMERIC: NumericAccuracy, CHOICE: ChoiceAccuracy}
