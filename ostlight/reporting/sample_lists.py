"""Which samples to show: the best, the worst, and those nearest to a budget's cutoff."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

LONGEST = 36
"""Samples in a list."""


def cutoff_score(score: np.ndarray, kept: int) -> float:
    """The score half-way between the last of the ``kept`` highest and the next."""
    ordered = np.sort(score)[::-1]
    if not 0 < kept < len(ordered):
        return float(ordered[-1] if kept else ordered[0]) if len(ordered) else 0.0
    return float(ordered[kept - 1] + ordered[kept]) / 2


def cutoff_margins(scores: ScoreColumns, selection: Selection) -> np.ndarray | None:
    """``[N]`` score minus the budget's cutoff; of a stratified budget, minus the cutoff of the sample's own stratum.

    ``None`` where the kept are not the highest scores (a set objective, a random subset): there is no cutoff.
    """
    margins = np.zeros(len(scores))
    strata = scores.tags.get(selection.stratify_by) if selection.stratify_by else None
    strata = np.zeros(len(scores)) if strata is None else strata
    for stratum in set(strata.tolist()):
        rows = np.flatnonzero(strata == stratum)
        kept, dropped = (scores.score[rows[selection.kept[rows] == side]] for side in (True, False))
        if len(kept) and len(dropped) and kept.min() < dropped.max():
            return None
        margins[rows] = scores.score[rows] - cutoff_score(scores.score[rows], int(selection.kept[rows].sum()))
    return margins


def sample_lists(
    scores: ScoreColumns, margins: Sequence[np.ndarray | None], longest: int = LONGEST
) -> dict[str, np.ndarray]:
    """Rows by list: ``useful`` (best first), ``toxic`` or ``lowest`` (worst first), and for each selection
    ``borderline`` with its key (nearest to the cutoff first).

    Args:
        margins: ``cutoff_margins`` of each selection.
    """
    order = np.argsort(scores.place)
    worst = order[::-1]
    lists = {"useful": order[:longest]}
    if scores.is_utility:
        lists["toxic"] = worst[scores.toxic[worst]][:longest]
    else:
        lists["lowest"] = worst[:longest]
    for selection, margin in zip(scores.selections, margins, strict=True):
        if margin is not None:
            lists[f"borderline{selection.key}"] = np.argsort(np.abs(margin), kind="stable")[:longest]
    return lists
