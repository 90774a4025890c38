"""``selection: round_robin``: the anchors take turns, each with the sample that helps it most."""

from __future__ import annotations

import logging

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import DataError
from ostlight.selection.scores import Scores
from ostlight.selection.strata import select_per_stratum

log = logging.getLogger("ostlight.selectors.ost")

ROUNDING = 1e-6
"""Of the median length of a gradient: what is shorter is zero but for rounding."""


def select_round_robin(scores: Scores, budget: Budget, normalize: bool, by_anchor: str, scale: str) -> np.ndarray:
    """Rows in the order in which anchors (or anchor groups) take them: each in turn its best sample that is left, of
    those that help it; all of them are served before one is served again (cf. arXiv 2602.14696).

    When no anchor is helped by what is left, the rest follows by utility.

    Args:
        scores: with a column of utilities by anchor, or of utilities by group.
        budget: strata get their shares.
        normalize: divide a sample's utilities by the length of its gradient.
        by_anchor: name of the column of each anchor's utility, in units of the column ``scale``.

    Raises:
        DataError: there is neither column.
    """
    column = by_anchor if by_anchor in scores else "utility_by_group"
    if column not in scores:
        raise DataError(
            f"selection=round_robin needs the column {by_anchor!r} (utility_by_anchor=true) or 'utility_by_group' "
            "(anchors.group): score with one of them"
        )

    def in_turn(part: Scores, share: Budget) -> np.ndarray:
        utilities = part.column(column).astype(np.float32)
        if column == by_anchor:
            utilities *= part.column(scale)[:, None].astype(np.float32)
        if normalize and "gradient_norm" in part:
            utilities *= _inverse(part.column("gradient_norm"))[:, None]
        if share.threshold is not None:
            utilities[part.score < share.threshold] = 0
        order = turns(np.nan_to_num(utilities, nan=-np.inf), _most(part, share))
        rest = np.setdiff1d(np.lexsort((part.positions, -part.score)), order, assume_unique=True)
        rest = rest[np.lexsort((part.positions[rest], -part.score[rest]))]
        return share.within(part, np.concatenate([order, rest]))

    return in_turn(scores, budget) if budget.stratify_by is None else select_per_stratum(scores, budget, in_turn)


def _inverse(norms: np.ndarray) -> np.ndarray:
    """``1 / norm``; 0 for a gradient that is zero but for rounding, whose utilities are noise."""
    floor = ROUNDING * float(np.median(norms)) if len(norms) else 0.0
    return np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > floor).astype(np.float32)


def _most(scores: Scores, budget: Budget) -> int:
    """Samples that a budget can hold at most."""
    if budget.tokens is not None:
        return int(np.searchsorted(np.cumsum(np.sort(scores.tokens)), budget.tokens, side="right"))
    if budget.threshold is not None:
        return int((scores.score >= budget.threshold).sum())
    return budget.size(len(scores))


def turns(utilities: np.ndarray, wanted: int) -> np.ndarray:
    """At most ``wanted`` rows of ``[N, A]`` utilities, in the order in which the columns take them in turn.

    Only positive utilities are taken; of equal ones the first row.
    """
    count, anchors = utilities.shape
    taken = np.zeros(count, dtype=bool)
    order: list[int] = []
    queues = [_Queue(utilities[:, a], max(64, 4 * -(-wanted // anchors))) for a in range(anchors)]
    active = list(range(anchors))
    while active and len(order) < wanted:
        for a in list(active):
            row = queues[a].best(taken)
            if row is None:
                active.remove(a)
                continue
            taken[row] = True
            order.append(row)
            if len(order) == wanted:
                break
    return np.array(order, dtype=np.int64)


class _Queue:
    """One anchor's samples, best first; sorted piece by piece, as far as they are asked for."""

    def __init__(self, utilities: np.ndarray, piece: int) -> None:
        self._utilities, self._piece = utilities, piece
        self._sorted: np.ndarray = np.empty(0, dtype=np.int64)
        self._next = 0

    def best(self, taken: np.ndarray) -> int | None:
        """The best row that is not taken; ``None`` where none that is left has a positive utility."""
        while True:
            while self._next < len(self._sorted):
                row = int(self._sorted[self._next])
                if not self._utilities[row] > 0:
                    return None
                self._next += 1
                if not taken[row]:
                    return row
            if len(self._sorted) == len(self._utilities):
                return None
            self._sort_more()

    def _sort_more(self) -> None:
        known, size = len(self._sorted), min(len(self._utilities), max(2 * len(self._sorted), self._piece))
        top = np.argpartition(-self._utilities, size - 1)[:size] if size < len(self._utilities) else None
        if top is None:
            self._sorted = np.argsort(-self._utilities, kind="stable")
        else:
            edge = self._utilities[top].min()
            above = np.flatnonzero(self._utilities > edge)
            equal = np.flatnonzero(self._utilities == edge)[: size - len(above)]
            rows = np.sort(np.concatenate([above, equal]))
            self._sorted = rows[np.argsort(-self._utilities[rows], kind="stable")]
        assert len(self._sorted) > known, "each piece is longer than the one before"
