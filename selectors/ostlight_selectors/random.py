"""Keeps a random subset: the baseline of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from ostlight.models.batch import Batch
from ostlight.selection.context import ScoringContext
from ostlight.selection.random_numbers import uniform_by_id
from ostlight.selection.selector import Selector


class Random(Selector):
    """A uniform random subset, the same for the same seed whatever the order of the pool."""

    stochastic: ClassVar[bool] = True

    def setup(self, context: ScoringContext) -> None:
        self.seed = context.seed

    def score(self, batch: Batch) -> dict[str, Any]:
        return {"score": uniform_by_id(self.seed, (sample.id for sample in batch.samples))}
