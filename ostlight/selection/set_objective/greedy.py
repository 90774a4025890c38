"""Selecting block by block, each block by what it adds to the ones before, then exchanging what fits less well."""

from __future__ import annotations

import math

import numpy as np

from ostlight.selection.set_objective.constraints import Constraints, top
from ostlight.selection.set_objective.objective import SetObjective

BLOCKS = 200
"""Times all samples are looked at. Sets of at most this many samples are selected one at a time."""

CANDIDATES = 4
"""Blocks' worth of best samples looked at where groups or costs may refuse some of them."""

SHORTLIST = 64
"""Samples on either side whose swaps are all compared exactly."""

EXCHANGES = 60
"""Rounds of exchange at most."""

RISE = 1e-12
"""Smallest relative change of V that counts as one."""


def solve_greedily(objective: SetObjective, constraints: Constraints, blocks: int = BLOCKS) -> np.ndarray:
    """Rows that fill the budget, in the order they were taken.

    Sample i added to a set with ``s = sum phi`` changes ``m V`` by ``a_i - (b/m) <phi_i, s> - (b/2m) ||phi_i||^2``.
    Every block takes the samples for which this (per cost) is highest, equal ones in row order, then ``s`` is updated.
    V is concave in the weights but not submodular, so this is a heuristic; ``solve_relaxation`` bounds its loss.
    Cost: ``blocks`` passes over ``phi``, with about ``5 N`` float64 of memory beside it.

    Raises:
        ValueError: objective and constraints are of different lengths, or no sample fits.
    """
    if len(objective) != len(constraints):
        raise ValueError(f"the objective has {len(objective)} samples, the constraints have {len(constraints)}")
    block = math.ceil(constraints.size / blocks)
    own = objective.own
    taken = np.zeros(len(objective), dtype=bool)
    total, remaining = np.zeros(objective.phi.shape[1]), constraints.budgets.copy()
    selected: list[np.ndarray] = []
    while True:
        added = objective.marginal_gains(total) - own
        if not constraints.counted:
            added /= constraints.costs
        added[taken | ~constraints.fits(remaining)] = -np.inf
        rows = constraints.fitting(top(added, CANDIDATES * block), remaining)[:block]
        if not len(rows):
            break
        taken[rows] = True
        remaining = remaining - constraints.costs_of(rows)
        total += objective.total(rows)
        selected.append(rows)
    if not selected:
        raise ValueError(
            f"no sample fits the budget {constraints.budgets.tolist()}; the cheapest costs {constraints.costs.min()}"
        )
    return np.concatenate(selected)


def improve_by_exchange(
    objective: SetObjective, constraints: Constraints, rows: np.ndarray, rounds: int = EXCHANGES
) -> np.ndarray:
    """The set after swaps within groups that raise V, in row order; for counted samples only.

    The worst of the set and the best outside it are paired. A round swaps all promising pairs, or the first half,
    quarter, ... of them if that raises V, or else the one pair of a shortlist that raises it most; it ends with none.
    """
    if not constraints.counted:
        return rows
    inside = np.zeros(len(objective), dtype=bool)
    inside[rows] = True
    total, gain = objective.total(rows), float(objective.gains[rows].sum())
    value, limit = objective.value_at(gain, total), len(rows)
    for _ in range(rounds):
        marginal = objective.marginal_gains(total)
        out, new = _pairs(constraints, inside, marginal, objective.own, max(limit, SHORTLIST))
        number = min(limit, int((_swap_gains(objective, marginal, out, new) > 0).sum()))
        while True:
            if not number:
                out, new = _best_pair(objective, constraints, marginal, out[:SHORTLIST], new[:SHORTLIST])
            step = max(1, number)
            after_total = total + objective.total(new[:step]) - objective.total(out[:step])
            after_gain = gain + float(objective.gains[new[:step]].sum() - objective.gains[out[:step]].sum())
            after = objective.value_at(after_gain, after_total)
            improved = after > value + RISE * abs(value)
            if improved or not number:
                break
            number //= 2
        if not improved:
            break
        inside[out[:step]], inside[new[:step]] = False, True
        total, gain, value, limit = after_total, after_gain, after, 2 * step
    return np.flatnonzero(inside)


def _swap_gains(objective: SetObjective, marginal: np.ndarray, out: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What each swap adds to ``m V`` if the two samples have nothing in common."""
    own = objective.own
    return np.asarray(marginal[new] - own[new] - marginal[out] - own[out])


def _pairs(
    constraints: Constraints, inside: np.ndarray, marginal: np.ndarray, own: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to leave and rows to join, paired within groups, the most promising swap first."""
    leaving, joining = np.where(inside, -marginal - own, -np.inf), np.where(inside, -np.inf, marginal - own)
    outs, news = [], []
    for group in range(len(constraints.budgets)):
        members = np.flatnonzero(constraints.groups == group)
        out, new = top(leaving[members], limit), top(joining[members], limit)
        pairs = min(len(out), len(new))
        outs.append(members[out[:pairs]])
        news.append(members[new[:pairs]])
    out, new = np.concatenate(outs), np.concatenate(news)
    order = np.lexsort((out, -(leaving[out] + joining[new])))
    return out[order], new[order]


def _best_pair(
    objective: SetObjective, constraints: Constraints, marginal: np.ndarray, out: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The swap that adds most to ``m V``, what the two samples have in common counted."""
    if not len(out):
        return out, new
    common = objective.phi[out].astype(np.float64) @ objective.phi[new].astype(np.float64).T
    gains = _swap_gains(objective, marginal, out[:, None], new[None]) + common * (objective.redundancy / objective.size)
    gains[constraints.groups[out][:, None] != constraints.groups[new][None]] = -np.inf
    leaves, joins = np.unravel_index(int(gains.argmax()), gains.shape)
    return out[[leaves]], new[[joins]]
