"""Selectors that rank by one number a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from scipy.stats import rankdata

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector

if TYPE_CHECKING:
    from ostlight.models.batch import Batch
    from ostlight.selection.context import ScoringContext

Preference = Literal["low", "high", "middle"]


class MetricSelector(Selector):
    """Ranks samples by one metric: the highest, the lowest, or those nearest the middle of the pool.

    A subclass names the metric's column and computes it in ``measure``. The score is the metric, negated for ``low``;
    for ``middle`` it is the metric itself, since only ``select`` knows the pool.
    """

    column: ClassVar[str] = "value"

    @dataclass
    class Options:
        """Attributes:
        prefer: ``low``, ``high`` or ``middle``.
        """

        prefer: Preference = "high"

    def setup(self, context: ScoringContext) -> None:
        """Keeps the proxy as ``self.model``, where the metric is taken with it."""
        if self.uses_proxy:
            self.model = context.proxy.model

    @abstractmethod
    def measure(self, batch: Batch) -> Mapping[str, Any]:
        """Columns as ``score`` returns them, with ``column`` in the place of ``score``."""

    def score(self, batch: Batch) -> Mapping[str, Any]:
        columns = self.measure(batch)
        values = torch.as_tensor(columns[self.column], dtype=torch.float64).cpu().numpy()
        return {"score": self.score_of(values), **columns}

    def score_of(self, values: np.ndarray) -> np.ndarray:
        """The score of measured values; higher is better, but for ``middle``."""
        return -values if self.options.prefer == "low" else values

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        if self.options.prefer != "middle":
            return budget.top(scores)
        if budget.threshold is not None:
            raise SelectorError("budget.threshold has a lowest score, and prefer=middle none; give a fraction or count")
        # By rank, not by value: the middle of a skewed number is where half of the pool lies on either side. Of two as
        # far from it the lower comes first, so that no order of the pool decides.
        off = rankdata(scores.score) - (len(scores) + 1) / 2
        return budget.top(scores.with_score(-np.abs(off) - 0.25 * (off > 0)))
