"""How far a ranking can be trusted: an estimator's scores against `exact`, on a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy.stats import spearmanr

from ostlight.influence.estimators.exact import Exact
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.progress import track


class Estimator(Protocol):
    """Anything that scores a batch."""

    def columns(self, batch: Any) -> dict[str, Any]: ...


FIRST_ORDER = "; first order leaves out curvature: rely on its sign, as filter does, not on its order"
ADVICE = {
    "projected": "; a higher rank or estimator exact would be safer",
    "second_order": "; more probes, or estimator projected or exact, would be safer",
    "first_order": FIRST_ORDER,
    "finite_difference": FIRST_ORDER,
}
"""What to do about a low rank agreement."""

FEWEST, MOST, SHARE = 16, 64, 0.01
"""Samples compared: a share of the pool, within bounds. Each costs a pass over all anchors."""


@dataclass(frozen=True)
class RankAgreement:
    """Spearman rank correlation with ``exact`` over ``samples`` samples; NaN where one ranking is constant.

    ``seen``: the estimator was made from these samples too, which flatters it.
    """

    spearman: float
    samples: int
    seen: bool = False

    def summary(self, estimator: str) -> str:
        """One line for the log."""
        if math.isnan(self.spearman):
            return f"rank agreement of {estimator} with exact: not measurable on {self.samples} samples"
        advice = "" if self.spearman >= 0.8 else ADVICE.get(estimator, "")
        known = ", which it was made from" if self.seen else ""
        agreed = f"{self.spearman:.2f} (Spearman, {self.samples} samples{known})"
        return f"rank agreement of {estimator} with exact: {agreed}{advice}"

    def note(self, estimator: str) -> dict[str, Any]:
        """For the run's notes; ``spearman`` is ``None`` where it could not be measured."""
        spearman = None if math.isnan(self.spearman) else self.spearman
        return {"estimator": estimator, "spearman": spearman, "samples": self.samples, "seen": self.seen}


def sample_count(records: int) -> int:
    """How many samples to compare in a pool of that size."""
    return min(MOST, max(FEWEST, round(SHARE * records)))


def rank_agreement(
    step: SimulatedStep, estimator: Estimator, batches: Sequence[Any], seen: bool = False
) -> RankAgreement:
    """Scores the given samples both ways.

    Half-precision weights are copied to float32 for ``exact``, which would lose its step in them.
    """
    exact = Exact(step.in_full_precision())
    estimated, expected = (
        [float(u) for b in track(batches, "rank agreement", unit="samples") for u in one.columns(b)["score"]]
        for one in (estimator, exact)
    )
    pairs = [(a, b) for a, b in zip(estimated, expected, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return RankAgreement(float("nan"), len(pairs), seen)
    return RankAgreement(float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs), seen)
