"""How much a set may hold: samples or tokens, in all or group by group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Constraints:
    """The sets allowed. A set fills its budget: it stops only where nothing that remains would fit.

    Attributes:
        costs: ``[N]`` float64 above 0; all 1 where samples are counted.
        groups: ``[N]`` int64, numbers from 0.
        budgets: ``[groups]`` float64, what each group may cost at most.
        counted: samples are counted; otherwise their costs are added up.
    """

    costs: np.ndarray
    groups: np.ndarray
    budgets: np.ndarray
    counted: bool

    @classmethod
    def count(cls, count: int, available: int) -> Constraints:
        """Exactly ``count`` samples, or all where there are fewer."""
        return cls.by_group(np.zeros(available, dtype=np.int64), [count])

    @classmethod
    def tokens(cls, total: float, costs: np.ndarray) -> Constraints:
        """Samples whose costs add up to at most ``total``."""
        return cls.by_group(np.zeros(len(costs), dtype=np.int64), [total], costs)

    @classmethod
    def by_group(
        cls, groups: np.ndarray, budgets: np.ndarray | list[int] | list[float], costs: np.ndarray | None = None
    ) -> Constraints:
        """A budget for each group.

        Args:
            groups: ``[N]`` number of each sample's group.
            budgets: of each group, in samples, or in the unit of ``costs``.
            costs: ``[N]`` tokens of each sample; ``None`` counts samples.

        Raises:
            ValueError: shapes that do not fit, a group without a budget, costs or budgets that are not usable.
        """
        groups, counted = np.asarray(groups, dtype=np.int64), costs is None
        costs = np.ones(len(groups)) if costs is None else np.asarray(costs, dtype=np.float64)
        most = np.asarray(budgets, dtype=np.float64)
        if groups.ndim != 1 or costs.shape != groups.shape:
            raise ValueError(f"groups and costs must be [N]; got {groups.shape} and {costs.shape}")
        if len(groups) and (groups.min() < 0 or groups.max() >= len(most)):
            raise ValueError(f"groups run from {groups.min()} to {groups.max()}, but there are {len(most)} budgets")
        bad = np.flatnonzero(~(np.isfinite(costs) & (costs > 0)))
        if len(bad):
            raise ValueError(f"row {bad[0]} costs {costs[bad[0]]}; every sample must cost a finite number above 0")
        if not (np.isfinite(most).all() and (most >= 0).all()):
            raise ValueError(f"budgets must be finite and not negative; got {most.tolist()}")
        if counted:
            most = np.minimum(np.floor(most), np.bincount(groups, minlength=len(most)))
        return cls(costs, groups, most, counted)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def available(self) -> np.ndarray:
        """``[groups]`` cost of all samples of each group."""
        return np.bincount(self.groups, self.costs, minlength=len(self.budgets))

    @cached_property
    def size(self) -> float:
        """Samples the budget buys: their number, or the budgets over the mean costs of their groups' samples."""
        numbers = np.bincount(self.groups, minlength=len(self.budgets))
        buys = numbers * np.minimum(self.budgets, self.available) / np.maximum(self.available, np.finfo(float).tiny)
        return max(1.0, float(buys.sum()))

    @cached_property
    def smallest_cost(self) -> np.ndarray:
        """``[groups]`` what a set that fills its budget costs at least."""
        if self.counted:
            return self.budgets
        dearest = np.zeros(len(self.budgets))
        np.maximum.at(dearest, self.groups, self.costs)
        return np.where(self.available <= self.budgets, self.available, np.maximum(0.0, self.budgets - dearest))

    def fitting(self, order: np.ndarray, remaining: np.ndarray) -> np.ndarray:
        """Those of ``order`` reached before their group's budget in ``remaining``, ``[groups]``, is spent; in order."""
        groups, costs = self.groups[order], self.costs[order]
        return np.asarray(order[_running_costs(groups, costs, len(remaining)) <= remaining[groups]])

    def fits(self, remaining: np.ndarray) -> np.ndarray:
        """``[N]`` whether a sample fits what remains of its group's budget."""
        return np.asarray(self.costs <= remaining[self.groups])

    def costs_of(self, rows: np.ndarray) -> np.ndarray:
        """``[groups]`` cost of the given rows."""
        return np.bincount(self.groups[rows], self.costs[rows], minlength=len(self.budgets))

    def fill(self, values: np.ndarray) -> np.ndarray:
        """A set that fills its budget, taken by value per cost and skipping what does not fit, best first."""
        per_cost = values / self.costs
        order, remaining, kept = np.argsort(-per_cost, kind="stable"), self.budgets.copy(), []
        while len(order := order[self.costs[order] <= remaining[self.groups[order]]]):
            taken = self.fitting(order, remaining)
            kept.append(taken)
            remaining = remaining - self.costs_of(taken)
            order = order[~np.isin(order, taken, assume_unique=True)]
        rows = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
        return rows[np.lexsort((rows, -per_cost[rows]))]

    def vertex(self, values: np.ndarray) -> np.ndarray:
        """``[N]`` weights in [0, 1] that maximise ``sum w_i values_i`` for budgets that are filled.

        In each group: whole samples by value per cost, at most one in part.
        """
        if self.counted and len(self.budgets) == 1:  # as below, without sorting all values
            weights = np.zeros(len(values))
            weights[top(values, int(self.budgets[0]))] = 1.0
            return weights
        per_cost = values / self.costs
        order = np.argsort(-per_cost, kind="stable")
        groups, costs = self.groups[order], self.costs[order]
        helpful = np.bincount(groups, costs * (per_cost[order] > 0), minlength=len(self.budgets))
        spent = np.clip(helpful, self.smallest_cost, np.minimum(self.budgets, self.available))
        before = _running_costs(groups, costs, len(self.budgets)) - costs
        weights = np.empty(len(values))
        weights[order] = np.clip((spent[groups] - before) / costs, 0.0, 1.0)
        return weights


def top(values: np.ndarray, count: int) -> np.ndarray:
    """Rows of the ``count`` highest values, best first, equal ones in row order; ``-inf`` is never taken."""
    if count < len(values):
        lowest = np.partition(values, len(values) - count)[len(values) - count] if count else np.inf
        above = np.flatnonzero(values > lowest)
        level = np.flatnonzero(values == lowest)[: count - len(above)]
        rows = np.concatenate([above, level])
    else:
        rows = np.arange(len(values))
    rows = rows[values[rows] > -np.inf]
    return np.asarray(rows[np.lexsort((rows, -values[rows]))])


def _running_costs(groups: np.ndarray, costs: np.ndarray, number: int) -> np.ndarray:
    """What each sample's group has spent once it is taken, the samples being taken in the order given."""
    by_group = np.argsort(groups, kind="stable")
    running = np.cumsum(costs[by_group])
    firsts = np.searchsorted(groups[by_group], np.arange(number))
    offsets = np.concatenate([[0.0], running])[firsts]
    spent = np.empty(len(costs))
    spent[by_group] = running - offsets[groups[by_group]]
    return spent
