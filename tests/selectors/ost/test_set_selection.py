"""``ost`` with ``selection: set``: budgets are filled, shares kept to jointly, and the solution noted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.set_objective import Constraints, SetObjective, minibatch_value, solve_set
from ostlight_selectors.ost.set_selection import select_set

STEP_SIZE, ROWS, RANK = 0.1, 60, 4
RNG = np.random.default_rng(3)
ALIGNMENTS, PHI = RNG.standard_normal(ROWS), 2 * RNG.standard_normal((ROWS, RANK))
TASKS = "aaabbc" * (ROWS // 6)
TOKENS = RNG.integers(5, 40, ROWS)


def table(order: np.ndarray | None = None) -> Scores:
    rows = [
        {
            "position": int(i),
            "id": str(i),
            "state": "ok",
            "score": STEP_SIZE * ALIGNMENTS[i] - STEP_SIZE**2 / 2 * float(PHI[i] @ PHI[i]),
            "alignment": ALIGNMENTS[i],
            "phi": PHI[i].tolist(),
            "step_size": STEP_SIZE,
            "tags": [("task", TASKS[i])],
            "tokens": int(TOKENS[i]),
        }
        for i in range(ROWS)
    ]
    scores = Scores(to_table(rows))
    return scores if order is None else scores.take(order)


def test_the_set_is_the_objectives_and_its_value_and_bound_are_noted():
    objective = SetObjective.minibatch(ALIGNMENTS, PHI, eta=10 * STEP_SIZE, batch_size=32, size=12)
    expected = solve_set(objective, Constraints.count(12, ROWS))
    notes: dict[str, Any] = {}
    scores = table().with_context(SelectionContext(lambda *_: 0.0, list, notes.__setitem__, 0))
    rows = create("ost", {"selection": "set"}).select(scores, Budget(count=12))
    assert rows.tolist() == expected.rows.tolist()
    note = json.loads(json.dumps(notes["set"], allow_nan=False))
    assert (note["step_size"], note["batch_size"]) == (pytest.approx(10 * STEP_SIZE), 32)
    assert note["value"] == pytest.approx(minibatch_value(ALIGNMENTS, PHI, rows, 10 * STEP_SIZE, 32))
    assert note["gap"] == pytest.approx(note["bound"] - note["value"])
    assert note["greedy_gap"] >= 0
    assert (note["samples"], note["rank"]) == (12, RANK)


def test_batches_of_one_at_the_scored_step_size_are_the_ranking_by_utility():
    rows = select_set(table(), Budget(count=9), step_size=1, batch_size=1)
    assert rows.tolist() == Budget(count=9).top(table()).tolist()


@pytest.mark.parametrize("stratify_by", [None, "task", "gradients.cluster"])
@pytest.mark.parametrize("size", [{"count": 12}, {"tokens": 250}])
def test_shares_are_kept_to_jointly_and_budgets_are_filled(size: dict[str, int], stratify_by: str | None):
    rows = select_set(table(), Budget(**size, stratify_by=stratify_by), 10, 32)
    if "count" in size:
        assert len(rows) == 12
    else:
        unspent = 250 - TOKENS[rows].sum()
        others = np.setdiff1d(np.arange(ROWS), rows)
        assert unspent >= 0
        assert stratify_by is not None or unspent < TOKENS[others].min()
    if stratify_by == "task":
        costs = np.ones(ROWS) if "count" in size else TOKENS
        for task, share in (("a", 1 / 2), ("b", 1 / 3), ("c", 1 / 6)):
            of_task = np.array(list(TASKS)) == task
            allowed = sum(size.values()) * (share if "count" in size else TOKENS[of_task].sum() / TOKENS.sum())
            assert costs[rows[of_task[rows]]].sum() <= allowed + 1


def test_a_joint_solution_is_worth_at_least_as_much_as_one_by_stratum():
    jointly = select_set(table(), Budget(count=12, stratify_by="task"), 10, 64)
    apart: list[int] = []
    for task, count in (("a", 6), ("b", 4), ("c", 2)):
        rows = np.flatnonzero(np.array(list(TASKS)) == task)
        apart += rows[select_set(table().take(rows), Budget(count=count), 10, 64)].tolist()
    values = [minibatch_value(ALIGNMENTS, PHI, np.array(rows), 10 * STEP_SIZE, 64) for rows in (jointly, apart)]
    assert values[0] > values[1]


@pytest.mark.parametrize("stratify_by", [None, "task"])
def test_the_set_does_not_depend_on_the_order_of_the_rows(stratify_by: str | None):
    budget = Budget(count=12, stratify_by=stratify_by)
    order = np.random.default_rng(1).permutation(ROWS)
    first = select_set(table(), budget, 10, 32)
    other = select_set(table(order), budget, 10, 32)
    assert set(order[other].tolist()) == set(first.tolist())


def test_a_budget_that_affords_nothing_keeps_nothing():
    assert len(select_set(table(), Budget(tokens=1), 1, 8)) == 0


def test_a_threshold_is_refused():
    with pytest.raises(SelectorError, match="selection=set takes a fraction, count or tokens"):
        select_set(table(), Budget(threshold=0.0), 1, 8)
