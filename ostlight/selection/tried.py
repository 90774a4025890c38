"""Several subsets for a budget, each tried on the proxy: kept is what does it most good."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import DivergedError
from ostlight.selection.random_numbers import draws
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import Pick, losses_after
from ostlight.selection.sets import BATCH_SIZES, SetSolver, scales
from ostlight.selection.strata import Strata, ranked

log = logging.getLogger(__name__)

REPEATS = 2
"""Trials of each subset, in different orders of its samples: what they differ by is the noise of a trial."""

RANKING, DRAW, LOW_LOSS = "sample by sample", "at random", "low loss"


def pick_by_trial(scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of the subset after which the trusted samples fare best, of a few read from the stored columns, best first.

    Tried are the ranking by score, a draw at random, low loss, and sets (where the scores hold ``phi``), each within
    the budget and its shares. Where a pool is sound the draw wins, because the best-ranked are narrower than the pool;
    where it is not, it depends on what is wrong, which no column tells (docs/setwise.md). Of those that no other beats
    beyond the noise of the trials the first in this order is kept. What was tried, what came of it, and how far each
    set may be from the best one, is noted as ``trial``. A threshold fixes the subset, so nothing is tried there;
    outside a run (in a cascade, or by hand) there is no proxy to try on, and the ranking is kept.

    Args:
        scores: with the column ``loss``; ``alignment``, ``phi`` and ``step_size`` for sets.

    Raises:
        DivergedError: the trials of all subsets diverged.
        DataError: as ``Strata.of``.
    """
    strata = Strata.of(scores, budget.stratify_by) if budget.stratify_by is not None else None
    rows = ranked(scores, budget, strata)
    if budget.threshold is not None or len(rows) in (0, len(scores)) or not scores.in_run:
        return rows
    sets = _sets(scores, budget, strata)
    subsets = {
        RANKING: rows,
        DRAW: _best_first(scores, np.array(draws(scores.context.seed, scores.ids)), budget, strata),
        LOW_LOSS: _best_first(scores, -scores.column("loss"), budget, strata),
        **{name: pick.rows for name, pick in sets.items()},
    }
    log.info(f"{len(subsets)} subsets are tried on the proxy, {REPEATS * len(subsets)} trials at most")
    named = list(subsets.items())
    tried = np.transpose([losses_after(named, partial(scores.trial, repeat=r)) for r in range(REPEATS)])
    losses = dict(zip(subsets, tried.tolist(), strict=True))
    kept, _ = named[first_of_the_best(tried)]
    told = {name: each if np.isfinite(each).all() else None for name, each in losses.items()}
    gaps = {name: {"value": s.value, "gap": s.gap, "greedy_gap": s.greedy_gap} for name, s in sets.items()}
    note = {"samples": len(subsets[kept]), "kept": kept, "losses": told, "sets": gaps}
    scores.context.note("trial", note)
    log.info(_line(kept, losses, len(subsets[kept])))
    return subsets[kept]


def first_of_the_best(losses: np.ndarray) -> int:
    """The first subset whose mean loss is within one standard error of a difference from the lowest.

    Whatever is simplest comes first, as in the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984,
    "Classification and Regression Trees", section 3.4.3). Noise grows with the loss, so logarithms are compared.

    Args:
        losses: ``[subsets, repeats]``, in nats; infinite where a training diverged, and then never chosen.

    Raises:
        DivergedError: no subset has finite losses alone.
    """
    logs = np.log(np.maximum(losses, np.finfo(np.float64).tiny))
    means, finite = logs.mean(1), np.isfinite(logs).all(1)
    if not finite.any():
        raise DivergedError("every subset's training diverged in some order; lower the warm-up's learning rate")
    noise = np.sqrt(logs[finite].var(1, ddof=1).mean() * 2 / losses.shape[1])
    return int(np.flatnonzero(means <= means[finite].min() + noise)[0])


def _best_first(scores: Scores, by: np.ndarray, budget: Budget, strata: Strata | None) -> np.ndarray:
    """What another number than the score keeps, in the order of the score."""
    rows = ranked(scores.with_score(by), budget, strata)
    return rows[np.lexsort((scores.positions[rows], -scores.score[rows]))]


def _sets(scores: Scores, budget: Budget, strata: Strata | None) -> dict[str, Pick]:
    solver = SetSolver.of(scores, budget, strata) if "phi" in scores else None
    if solver is None:
        return {}
    tried = scales(solver.eta, batch_size=min(BATCH_SIZES))
    return {f"set {scale.label}": solver.solve(scale) for scale in tried}


def _line(kept: str, losses: dict[str, list[float]], samples: int) -> str:
    means = {name: float(np.mean(each)) for name, each in losses.items()}
    others = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items() if name != kept)
    told = f"trial: {samples:,} samples, {kept}: loss {means[kept]:.4g} on the trusted samples after a brief training "
    told += f"of the proxy, mean of {REPEATS}; {others}"
    return told + ("; no choice trains it better, so a draw will do here" if kept == DRAW else "")
