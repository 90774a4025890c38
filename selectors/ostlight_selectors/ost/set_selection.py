"""Selects a set of samples jointly, from the stored columns of ``ost``."""

from __future__ import annotations

import logging

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import Constraints, SetObjective, solve_set, stratified_constraints
from ostlight.selection.strata import Strata

log = logging.getLogger("ostlight.selectors.ost")


def select_set(scores: Scores, budget: Budget, step_size: float, batch_size: int) -> np.ndarray:
    """Rows of the set with the highest mini-batch objective (docs/explanation/sets.md), in the order block-greedy
    takes them.

    All strata of ``budget.stratify_by`` are solved for jointly, each within its share. In a run the set's value and how
    far it may be from the best one are noted as ``set``.

    Args:
        scores: with the columns ``alignment``, ``phi`` and ``step_size``; at least one row.
        budget: a fraction, count or number of tokens.
        step_size: of the objective, in multiples of the step size that the samples were scored with.
        batch_size: of the objective's mini-batches.

    Raises:
        SelectorError: the budget is a threshold.
        DataError: as ``Strata.of``.
    """
    if budget.threshold is not None:
        raise SelectorError("budget.threshold is for single samples; selection=set takes a fraction, count or tokens")
    constraints = set_constraints(scores, budget)
    if not constraints.fits(constraints.budgets).any():
        return np.empty(0, dtype=np.int64)
    alignments, phi, step = (
        scores.column("alignment"),
        scores.column("phi"),
        step_size * float(scores.column("step_size")[0]),
    )
    objective = SetObjective.minibatch(alignments, phi, eta=step, batch_size=batch_size, size=constraints.size)
    solution = solve_set(objective, constraints)
    log.info(
        f"set: {len(solution.rows):,} samples at step size {step:.4g} and batch size {batch_size}; value "
        f"{solution.value:.4g}, the best set's is at most {solution.gap:.2g} higher"
    )
    if scores.in_run:
        note = {"samples": len(solution.rows), "rank": phi.shape[1], "step_size": step, "batch_size": batch_size}
        values = ("value", "bound", "gap", "greedy_value", "greedy_gap")
        scores.context.note("set", note | {name: getattr(solution, name) for name in values})
    return solution.rows


def set_constraints(scores: Scores, budget: Budget) -> Constraints:
    """The budget in samples or tokens, split into the shares of ``budget.stratify_by``."""
    costs = scores.tokens if budget.tokens is not None else None
    total = budget.tokens if budget.tokens is not None else budget.size(len(scores))
    if budget.stratify_by is not None:
        strata = Strata.of(scores, budget.stratify_by, costs is not None)
        return stratified_constraints(strata.labels, total, costs, strata.weights)
    return Constraints.count(total, len(scores)) if costs is None else Constraints.tokens(total, costs)
