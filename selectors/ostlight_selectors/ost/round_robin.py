"""``selection: round_robin``: the anchors take turns, each with the sample that helps it most."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

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
        stored, factors = part.column(column), np.ones(len(part), dtype=np.float32)
        if column == by_anchor:
            factors *= part.column(scale).astype(np.float32)
        if normalize and "gradient_norm" in part:
            factors *= _inverse(part.column("gradient_norm"))
        if share.threshold is not None:
            factors[part.score < share.threshold] = 0
        # One anchor's utilities at a time: those of ten million samples on a hundred anchors take 4 GB.
        order = take_turns(lambda a: stored[:, a].astype(np.float32) * factors, stored.shape[1], _most(part, share))
        rest = np.setdiff1d(np.arange(len(part)), order, assume_unique=True)
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


def take_turns(utilities: Callable[[int], np.ndarray], anchors: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` rows, in the order in which the anchors take them in turn.

    Only positive utilities are taken; of equal ones the first row.

    Args:
        utilities: of an anchor's number, ``[N]`` utilities of all rows; called again when its queue needs more.
        anchors: how many there are.
        wanted: rows.
    """
    first = max(64, 4 * -(-wanted // max(1, anchors)))
    queues = [_Queue(partial(utilities, a), first) for a in range(anchors)]
    taken: set[int] = set()
    order: list[int] = []
    active = list(queues)
    while active and len(order) < wanted:
        for queue in list(active):
            row = queue.best(taken)
            if row is None:
                active.remove(queue)
                continue
            taken.add(row)
            order.append(row)
            if len(order) == wanted:
                break
    return np.array(order, dtype=np.int64)


class _Queue:
    """One anchor's rows of positive utility, best first; sorted piece by piece, as far as they are asked for."""

    def __init__(self, utilities: Callable[[], np.ndarray], piece: int) -> None:
        self._utilities, self._piece = utilities, piece
        self._sorted: list[int] = []
        self._next, self._is_complete = 0, False

    def best(self, taken: set[int]) -> int | None:
        """The best row that is not taken; ``None`` where there is none."""
        while True:
            while self._next < len(self._sorted):
                row = self._sorted[self._next]
                self._next += 1
                if row not in taken:
                    return row
            if self._is_complete:
                return None
            self._sort_more()

    def _sort_more(self) -> None:
        """Doubles the sorted rows. Equal utilities at the edge of a piece all belong to it."""
        utilities = np.nan_to_num(self._utilities(), nan=-np.inf)
        size = max(2 * len(self._sorted), self._piece)
        positive = np.flatnonzero(utilities > 0)
        if size < len(positive):
            edge = np.partition(utilities[positive], len(positive) - size)[len(positive) - size]
            positive = positive[utilities[positive] >= edge]
        else:
            self._is_complete = True
        self._sorted = positive[np.argsort(-utilities[positive], kind="stable")].tolist()
