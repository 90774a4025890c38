"""A set for a budget, from stored columns: the shares it keeps to, the scale it is picked at, what is told of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import (
    Choice,
    Limits,
    Pick,
    Scale,
    SetObjective,
    Tried,
    choose_scale,
    quota_limits,
    solve_set,
)
from ostlight.selection.strata import Strata

log = logging.getLogger(__name__)

MULTIPLES = (1.0, 10.0, 100.0)
"""Step sizes tried, as multiples of the sample's own; sets of many samples bear longer steps (docs/setwise.md)."""

BATCH_SIZES = (32, 256)
"""Mini-batches tried."""


def select_best_set(
    scores: Scores, budget: Budget, eta: float | None = None, batch_size: int | None = None
) -> np.ndarray:
    """Rows of the set that the mini-batch objective prefers, shares of ``budget.stratify_by`` kept to jointly, best
    first.

    Where ``eta`` or ``batch_size`` is left open a few values are tried on the run's proxy (``Scores.trial``), among
    them the ranking sample by sample where both are; the set after which the trusted samples fare best is kept. What
    was tried and how far the set may be from the best one is noted as ``set``.

    Args:
        scores: with the columns ``alignment``, ``phi`` and ``step_size``.
        budget: a fraction, count or number of tokens.
        eta: step size of the objective.
        batch_size: of the objective's mini-batches.

    Raises:
        SelectorError: a threshold; no run to try sets in.
        DivergedError: the trials of all sets diverged.
        DataError: as ``Strata.of``.
    """
    if budget.threshold is not None:
        raise SelectorError("budget.threshold ranks single samples; objective=set takes a fraction, count or tokens")
    solver = SetSolver.of(scores, budget)
    if solver is None:
        return np.empty(0, dtype=np.int64)
    alone = [Scale(solver.eta, 1)] if eta is None and batch_size is None else []
    tried = alone + scales(solver.eta, eta, batch_size)
    if len(tried) == 1:
        only = Tried(tried[0], solver.solve(tried[0]), math.nan)
        choice = Choice(only, (only,))
    else:
        choice = choose_scale(tried, solver.solve, scores.trial)
    if scores.in_run:
        scores.context.note("set", facts(choice, solver.phi.shape[1]))
        log.info(line(choice))
    return choice.best.pick.rows


@dataclass(frozen=True)
class SetSolver:
    """Picks sets for one budget, from stored columns.

    Attributes:
        slopes: ``[N]``.
        phi: ``[N, K]``.
        eta: the step size single samples were scored with.
        limits: what a set may hold.
    """

    slopes: np.ndarray
    phi: np.ndarray
    eta: float
    limits: Limits

    @classmethod
    def of(cls, scores: Scores, budget: Budget, strata: Strata | None = None) -> SetSolver | None:
        """``None`` where nothing fits the budget; ``strata`` are those of ``budget.stratify_by``, where they are
        known."""
        limits = _limits(scores, budget, strata)
        if limits is None:
            return None
        return cls(scores.column("alignment"), scores.column("phi"), float(scores.column("step_size")[0]), limits)

    def solve(self, scale: Scale) -> Pick:
        """The set of the scale's mini-batch objective, shares of ``budget.stratify_by`` kept to jointly."""
        settings = {"eta": scale.eta, "batch_size": scale.batch_size, "size": self.limits.size}
        return solve_set(SetObjective.minibatch(self.slopes, self.phi, **settings), self.limits)


def scales(own: float, eta: float | None = None, batch_size: int | None = None) -> list[Scale]:
    """The scales to try.

    Args:
        own: the step size single samples were scored with.
        eta, batch_size: fixed where given.
    """
    etas = [eta] if eta is not None else [own * multiple for multiple in MULTIPLES]
    sizes = [batch_size] if batch_size is not None else BATCH_SIZES
    return [Scale(e, b) for e in etas for b in sizes]


def _limits(scores: Scores, budget: Budget, strata: Strata | None) -> Limits | None:
    """``None`` where nothing fits."""
    costs = scores.tokens if budget.tokens is not None else None
    total = budget.tokens if budget.tokens is not None else budget.size(len(scores))
    if not len(scores):
        return None
    if budget.stratify_by is not None:
        strata = strata or Strata.of(scores, budget.stratify_by)
        limits = quota_limits(strata.labels, total, costs, strata.weights)
    elif costs is not None:
        limits = Limits.tokens(total, costs)
    else:
        limits = Limits.count(total, len(scores))
    return limits if limits.open(limits.most).any() else None


def facts(choice: Choice, probes: int) -> dict[str, Any]:
    """Plain data of a choice, for the run's notes; losses are ``None`` where no trial was made, or it diverged."""
    best = choice.best
    return {
        "samples": len(best.pick.rows),
        "probes": probes,
        **_scale(best),
        "bound": best.pick.bound,
        "greedy_value": best.pick.greedy_value,
        "greedy_gap": best.pick.greedy_gap,
        "tried": [_scale(one) for one in choice.tried],
    }


def _scale(one: Tried) -> dict[str, Any]:
    loss = one.loss if math.isfinite(one.loss) else None
    scale = {"eta": one.scale.eta, "batch_size": one.scale.batch_size}
    return {**scale, "value": one.pick.value, "gap": one.pick.gap, "loss": loss}


def line(choice: Choice) -> str:
    """One line for the user: the scale, how it was chosen, how good the set is known to be."""
    best = choice.best
    told = f"set: {len(best.pick.rows):,} samples at {best.scale.label}"
    if len(choice.tried) > 1:
        told += f", of {len(choice.tried)} scales tried the one after which the loss on trusted samples is lowest "
        told += f"({best.loss:.4g}; {_others(choice.tried)})"
    told += f"; value {best.pick.value:.4g}, the best set's is at most {best.pick.gap:.2g} higher"
    return told + f"; relaxed less greedy {best.pick.greedy_gap:.2g}"


def _others(tried: Sequence[Tried]) -> str:
    alone = [one.loss for one in tried if one.scale.batch_size == 1]
    worst = f"the highest is {max(one.loss for one in tried):.4g}"
    return f"sample by sample {alone[0]:.4g}, {worst}" if alone else worst
