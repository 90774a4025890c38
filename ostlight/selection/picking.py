"""From scores to the rows that are kept, whatever the selector picks."""

from __future__ import annotations

import numpy as np

from ostlight.errors import SelectorError
from ostlight.selection.budget import Budget
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector


def pick_rows(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of ``scores`` the selector keeps, best first; tag by tag where the budget says ``within``.

    A selector is not asked about a table without rows: its evidence columns are not there.

    Raises:
        SelectorError: ``pick`` returned rows that do not exist, or one twice.
        DataError: ``budget.within`` names a tag no sample has.
    """
    if not len(scores):
        return np.array([], dtype=np.int64)
    if budget.within is None:
        return _checked(selector, scores, budget)
    values = scores.tag(budget.within)
    rows_of = {value: np.flatnonzero(values == value) for value in sorted(set(values))}
    sizes = {value: len(rows) for value, rows in rows_of.items()}
    tokens = {v: int(scores.tokens[r].sum()) for v, r in rows_of.items()} if budget.tokens is not None else None
    chosen = [
        rows_of[value][_checked(selector, scores.take(rows_of[value]), share)]
        for value, share in budget.shares(sizes, tokens).items()
    ]
    # Best of each tag first, then the second of each: a prefix of the ranking is itself spread over the tags.
    ranked = [(k / len(rows), v, int(row)) for v, rows in enumerate(chosen) for k, row in enumerate(rows)]
    return np.array([row for _, _, row in sorted(ranked)], dtype=np.int64)


def _checked(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    rows = np.asarray(selector.pick(scores, budget), dtype=np.int64)
    name = type(selector).__name__
    if rows.ndim != 1 or len(set(rows.tolist())) != len(rows):
        raise SelectorError(f"{name}.pick returned a row twice or no flat list; return each row at most once")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(scores)):
        raise SelectorError(f"{name}.pick returned row {rows.max()} of {len(scores)}; rows count from 0")
    return rows
