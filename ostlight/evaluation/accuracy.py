"""Accuracy of answers as a metric that adds up over batches and ranks."""

from __future__ import annotations

import torch
from torchmetrics import Metric

from ostlight.evaluation.answers import same_answer


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
