"""From scores to the rows that are kept, whatever the selector picks."""

from __future__ import annotations

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.selection.strata import select_per_stratum


def select_rows(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of ``scores`` the selector keeps, best first; kind by kind where the budget says ``stratify_by``, unless the
    selector sees to that itself.

    A selector is not asked about a table without rows: its evidence columns are not there.

    Raises:
        SelectorError: ``select`` returned rows that do not exist, or one twice.
        DataError: ``budget.stratify_by`` names a tag no sample has, or kinds that these scores do not tell apart.
    """
    if not len(scores):
        return np.array([], dtype=np.int64)
    if budget.tokens is None or selector.ignores_budget:
        return _picked(selector, scores, budget)
    # A sample that no budget of this size can afford must not stand in the way of the others.
    affordable = np.flatnonzero(scores.tokens <= budget.tokens)
    if not len(affordable):
        return affordable
    return affordable[_picked(selector, scores.take(affordable), budget)]


def _picked(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    if budget.stratify_by is None or selector.handles_strata:
        return _checked(selector, scores, budget)
    return select_per_stratum(scores, budget, lambda part, share: _checked(selector, part, share))


def _checked(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    rows = np.asarray(selector.select(scores, budget), dtype=np.int64)
    name = type(selector).__name__
    if rows.ndim != 1 or len(set(rows.tolist())) != len(rows):
        raise SelectorError(f"{name}.select returned a row twice or no flat list; return each row at most once")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(scores)):
        raise SelectorError(f"{name}.select returned row {rows.max()} of {len(scores)}; rows count from 0")
    return rows
