"""Which samples are worth looking at: the best, the worst, and those the budget decided on by a hair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostlight.reporting.evidence import Evidence
from ostlight.reporting.picks import Pick

LONGEST = 36
"""Samples in a list."""


def budget_line(score: np.ndarray, kept: int) -> float:
    """The score between the last sample that ``kept`` places have room for and the first without one."""
    ordered = np.sort(score)[::-1]
    if not 0 < kept < len(ordered):
        return float(ordered[-1] if kept else ordered[0]) if len(ordered) else 0.0
    return float(ordered[kept - 1] + ordered[kept]) / 2


def margins(evidence: Evidence, pick: Pick) -> np.ndarray | None:
    """``[N]`` score minus the budget's line; where the budget was spent tag by tag, the line of the sample's own tag.

    ``None`` where the kept are not the highest scores (a set, a draw): no line parts them.
    """
    found = np.zeros(len(evidence))
    values = evidence.tags.get(pick.stratify_by) if pick.stratify_by else None
    values = np.zeros(len(evidence)) if values is None else values
    for value in set(values.tolist()):
        rows = np.flatnonzero(values == value)
        kept, dropped = (evidence.score[rows[pick.kept[rows] == side]] for side in (True, False))
        if len(kept) and len(dropped) and kept.min() < dropped.max():
            return None
        found[rows] = evidence.score[rows] - budget_line(evidence.score[rows], int(pick.kept[rows].sum()))
    return found


def lists(evidence: Evidence, of_picks: Sequence[np.ndarray | None], longest: int = LONGEST) -> dict[str, np.ndarray]:
    """Rows by list: ``useful`` (best first), ``toxic`` (worst first), ``borderline`` (nearest to the line first), which
    bears the mark of its pick.

    Args:
        of_picks: ``margins`` of each pick.
    """
    order = np.argsort(evidence.place)
    found = {"useful": order[:longest]}
    if evidence.is_utility:
        worst = order[::-1]
        found["toxic"] = worst[evidence.toxic[worst]][:longest]
    else:
        found["lowest"] = order[::-1][:longest]
    for pick, margin in zip(evidence.picks, of_picks, strict=True):
        if margin is not None:
            found[f"borderline{pick.mark}"] = np.argsort(np.abs(margin), kind="stable")[:longest]
    return found


def undecided(evidence: Evidence, margin: np.ndarray | None, certain: float) -> int | None:
    """Samples whose side of the line is within the noise of their own sketch; ``None`` where that is unknown."""
    if margin is None or evidence.noise is None:
        return None
    return int((np.abs(margin) < certain * evidence.noise).sum())
