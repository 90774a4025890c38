"""One set for one budget: both ways tried, the better kept, its distance from the best possible said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ostlight.selection.set_objective.greedy import exchanged, greedy
from ostlight.selection.set_objective.limits import Limits
from ostlight.selection.set_objective.objective import SetObjective
from ostlight.selection.set_objective.relaxed import relaxed, rounded


@dataclass(frozen=True)
class Pick:
    """A set and how good it is known to be.

    Attributes:
        rows: indices of the set, in the order block-greedy takes them when it may take nothing else.
        value: V of the set.
        bound: no set within the limits has a higher V.
        greedy_value: V of block-greedy's set, before any exchange.
        rounded_value: V of the rounded relaxation, before any exchange.
        relaxed_value: V of the relaxation's weights.
    """

    rows: np.ndarray
    value: float
    bound: float
    greedy_value: float
    rounded_value: float
    relaxed_value: float

    @property
    def gap(self) -> float:
        """How much a better set could gain at most, in the unit of V."""
        return self.bound - self.value

    @property
    def greedy_gap(self) -> float:
        """Relaxed value less greedy value."""
        return self.relaxed_value - self.greedy_value


def solve_set(objective: SetObjective, limits: Limits) -> Pick:
    """The better of block-greedy and the rounded relaxation, each improved by exchanges.

    Deterministic; equal samples are taken in row order, apart from which the set does not depend on the rows' order.

    Raises:
        ValueError: objective and limits are of different lengths, or no sample fits.
    """
    by_greed = greedy(objective, limits)
    whole = relaxed(objective, limits)
    by_rounding = rounded(whole, limits)
    sets = [exchanged(objective, limits, rows) for rows in (by_greed, by_rounding)]
    values = [objective.value(rows) for rows in sets]
    best = np.sort(sets[int(values[1] > values[0])])
    order = greedy(objective.of(best), Limits.count(len(best), len(best)))
    return Pick(
        rows=best[order],
        value=max(values),
        bound=whole.bound,
        greedy_value=objective.value(by_greed),
        rounded_value=objective.value(by_rounding),
        relaxed_value=whole.value,
    )
