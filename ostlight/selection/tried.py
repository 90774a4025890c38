"""Several subsets for a budget, each tried on the proxy: what is kept is what does it most good."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ostlight.selection.budget import Budget
from ostlight.selection.draws import draws
from ostlight.selection.kinds import ranked
from ostlight.selection.scores import Scores
from ostlight.selection.sets import SetPicker, scales
from ostlight.setwise import losses_after

RANKING, LOW_LOSS, DRAW = "sample by sample", "low loss", "at random"


def pick_by_trial(scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of the subset after which the trusted samples fare best, of a few read from the stored columns.

    Tried are the ranking by score, low loss, a draw at random, and sets (where the scores hold ``phi``), each within
    the budget and its shares. Where a pool is sound the draw wins, because the best-ranked are narrower than the pool;
    where it is not, it depends on what is wrong, which no column tells (docs/setwise.md). What was tried, and what
    came of it, is noted as ``trial``. A threshold fixes the subset, so nothing is tried there.

    Args:
        scores: with the column ``loss``; ``slope``, ``phi`` and ``eta`` for sets.

    Raises:
        SelectorError: no run to try subsets in.
        DivergedError: the trials of all subsets diverged.
        DataError: as ``Kinds.of``.
    """
    rows = ranked(scores, budget)
    if budget.threshold is not None or len(rows) in (0, len(scores)):
        return rows
    subsets = {
        RANKING: rows,
        LOW_LOSS: ranked(scores.with_score(-scores.column("loss")), budget),
        DRAW: ranked(scores.with_score(np.array(draws(scores.setting.seed, scores.ids))), budget),
        **_sets(scores, budget),
    }
    losses = dict(zip(subsets, losses_after(list(subsets.items()), scores.trial), strict=True))
    kept = min((name for name in losses if math.isfinite(losses[name])), key=lambda name: losses[name])
    told = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}
    scores.setting.note("trial", {"budget": budget.label, "samples": len(subsets[kept]), "kept": kept, "losses": told})
    scores.setting.say(_line(kept, losses, len(subsets[kept])))
    return subsets[kept]


def _sets(scores: Scores, budget: Budget) -> dict[str, np.ndarray]:
    picker = SetPicker.of(scores, budget) if "phi" in scores else None
    if picker is None:
        return {}
    return {f"set {scale.label}": picker.pick(scale).rows for scale in scales(picker.eta)}


def _line(kept: str, losses: Mapping[str, float], samples: int) -> str:
    others = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items() if name != kept)
    told = f"trial: {samples:,} samples, {kept}: loss {losses[kept]:.4g} on the trusted samples after a brief training "
    told += f"of the proxy; {others}"
    return told + ("; nothing chosen trains it better, so this pool needs no choice here" if kept == DRAW else "")
