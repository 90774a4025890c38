"""How far a run's ranking can be trusted: its own scores against `exact`, on a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy.stats import spearmanr

from ostlight.influence.estimators.exact import Exact
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch


class Estimator(Protocol):
    """Whatever scores a batch."""

    def columns(self, batch: Batch) -> dict[str, Any]: ...


FEWEST, MOST, SHARE = 16, 64, 0.01
"""Samples looked at: a share of the pool, within bounds. Each costs a pass over all anchors."""


@dataclass(frozen=True)
class Agreement:
    """Spearman rank correlation with ``exact`` over ``samples`` samples; NaN where one ranking is constant.

    ``seen``: the pool is so small that the estimator was made from these samples too, which flatters it.
    """

    spearman: float
    samples: int
    seen: bool = False

    def line(self, estimator: str) -> str:
        """For the user."""
        if math.isnan(self.spearman):
            return f"rank agreement of {estimator} with exact: not measurable on {self.samples} samples"
        advice = "" if self.spearman >= 0.8 else "; more probes, or estimator exact, would be safer"
        known = ", which it was made from" if self.seen else ""
        agreed = f"{self.spearman:.2f} (Spearman, {self.samples} samples{known})"
        return f"rank agreement of {estimator} with exact: {agreed}{advice}"

    def note(self, estimator: str) -> dict[str, Any]:
        """For the run's notes; ``spearman`` is ``None`` where it could not be measured."""
        spearman = None if math.isnan(self.spearman) else self.spearman
        return {"estimator": estimator, "spearman": spearman, "samples": self.samples, "seen": self.seen}


def sample_count(records: int) -> int:
    """How many samples to look at in a pool of that size."""
    return min(MOST, max(FEWEST, round(SHARE * records)))


def rank_agreement(step: Step, estimator: Estimator, singles: Sequence[Batch], seen: bool = False) -> Agreement:
    """Scores the given samples both ways.

    Half-precision weights are copied to float32 for ``exact``, which would lose its step in them.
    """
    ours = [float(estimator.columns(single)["score"][0]) for single in singles]
    exact = Exact(step.in_full_precision())
    definition = [float(exact.columns(single)["score"][0]) for single in singles]
    pairs = [(a, b) for a, b in zip(ours, definition, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return Agreement(float("nan"), len(pairs), seen)
    return Agreement(float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs), seen)
