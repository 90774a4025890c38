"""One set for one budget: the better of two solutions, with a bound on what any set could reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ostlight.selection.set_objective.constraints import Constraints
from ostlight.selection.set_objective.greedy import improve_by_exchange, solve_greedily
from ostlight.selection.set_objective.objective import SetObjective
from ostlight.selection.set_objective.relaxation import round_relaxation, solve_relaxation


@dataclass(frozen=True)
class SetSolution:
    """A set and how good it is known to be.

    Attributes:
        rows: indices of the set, in the order block-greedy takes them when it may take nothing else.
        value: V of the set.
        bound: no set within the constraints has a higher V.
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
        """Value of the relaxation less that of block-greedy."""
        return self.relaxed_value - self.greedy_value


def solve_set(objective: SetObjective, constraints: Constraints) -> SetSolution:
    """The better of block-greedy and the rounded relaxation, each improved by exchanges.

    Deterministic; equal samples are taken in row order, apart from which the set does not depend on the rows' order.

    Raises:
        ValueError: objective and constraints are of different lengths, or no sample fits.
    """
    greedy = solve_greedily(objective, constraints)
    relaxed = solve_relaxation(objective, constraints)
    rounded = round_relaxation(relaxed, constraints)
    sets = [improve_by_exchange(objective, constraints, rows) for rows in (greedy, rounded)]
    values = [objective.value(rows) for rows in sets]
    best = np.sort(sets[int(values[1] > values[0])])
    order = solve_greedily(objective.of(best), Constraints.count(len(best), len(best)))
    return SetSolution(
        rows=best[order],
        value=max(values),
        bound=relaxed.bound,
        greedy_value=objective.value(greedy),
        rounded_value=objective.value(rounded),
        relaxed_value=relaxed.value,
    )
