"""The ceiling of cost."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ostlight.model.batch import Batch
from ostlight.selection.budget import Budget
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector


class Full(Selector):
    """The whole pool, whatever the budget."""

    ignores_budget: ClassVar[bool] = True

    def score(self, batch: Batch) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}

    def pick(self, scores: Scores, budget: Budget) -> np.ndarray:
        return np.arange(len(scores))
