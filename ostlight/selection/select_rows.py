"""Calls a selector's ``select`` so that every kind of budget is kept to."""

from __future__ import annotations

import numpy as np

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.selection.strata import select_per_stratum


def select_rows(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of ``scores`` that the selector keeps, best first.

    A selector without ``handles_strata`` is called once for each stratum of ``budget.stratify_by``. None is called with
    an empty table, whose extra columns are unknown.

    Raises:
        SelectorError: ``select`` returned a row that does not exist, or one twice.
        DataError: as ``Strata.of``.
    """
    if not len(scores):
        return np.array([], dtype=np.int64)
    if budget.tokens is None or selector.ignores_budget:
        return _select(selector, scores, budget)
    # A sample that is larger than the whole budget must not use up its stratum's share.
    affordable = np.flatnonzero(scores.tokens <= budget.tokens)
    if not len(affordable):
        return affordable
    return np.asarray(affordable[_select(selector, scores.take(affordable), budget)])


def _select(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    if budget.stratify_by is None or selector.handles_strata or selector.ignores_budget:
        return _checked_rows(selector, scores, budget)
    return select_per_stratum(scores, budget, lambda part, share: _checked_rows(selector, part, share))


def _checked_rows(selector: Selector, scores: Scores, budget: Budget) -> np.ndarray:
    rows = np.asarray(selector.select(scores, budget), dtype=np.int64)
    name = type(selector).__name__
    if rows.ndim != 1 or len(np.unique(rows)) != len(rows):
        raise SelectorError(f"{name}.select returned a row twice or no flat list; return each row at most once")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(scores)):
        raise SelectorError(f"{name}.select returned row {rows.max()} of {len(scores)}; rows count from 0")
    return rows
