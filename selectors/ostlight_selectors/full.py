"""Keeps the whole pool: the upper bound of training cost."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ostlight.config.budget import Budget
from ostlight.models.batch import Batch
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector


class Full(Selector):
    """The whole pool, whatever the budget."""

    ignores_budget: ClassVar[bool] = True

    def score(self, batch: Batch) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        return np.arange(len(scores))
