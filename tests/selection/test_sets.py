"""Sets for a budget: the scale that does best on the proxy, shares kept to jointly, and what is told of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import DivergedError, SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.set_objective import Limits, Scale, SetObjective, minibatch_value, solve_set
from ostlight.selection.sets import scales, select_best_set

ETA, ROWS, PROBES = 0.1, 60, 4
RNG = np.random.default_rng(3)
SLOPES, PHI = RNG.standard_normal(ROWS), 2 * RNG.standard_normal((ROWS, PROBES))
TASKS = "aaabbc" * (ROWS // 6)
TOKENS = RNG.integers(5, 40, ROWS)


class Run:
    """What a stage lends: trials by a rule."""

    def __init__(self, loss: Any = lambda rows: float(len(rows))) -> None:
        self.tried: list[np.ndarray] = []
        self.notes: dict[str, Any] = {}
        self.loss = loss

    def trial(self, positions: np.ndarray, repeat: int) -> float:
        self.tried.append(positions)
        return float(self.loss(positions))

    def scores(self, order: np.ndarray | None = None) -> Scores:
        rows = [
            {
                "position": int(i),
                "id": str(i),
                "state": "ok",
                "score": ETA * SLOPES[i] - ETA**2 / 2 * float(PHI[i] @ PHI[i]),
                "alignment": SLOPES[i],
                "phi": PHI[i].tolist(),
                "step_size": ETA,
                "tags": [("task", TASKS[i])],
                "tokens": int(TOKENS[i]),
            }
            for i in range(ROWS)
        ]
        context = SelectionContext(self.trial, list, self.notes.__setitem__, 0)
        scores = Scores(to_table(rows)).lent(context)
        return scores if order is None else scores.take(order)


def test_the_scales_tried():
    tried = scales(ETA)
    assert {s.batch_size for s in tried} == {32, 256}
    assert {round(s.eta / ETA, 6) for s in tried} == {1, 10, 100}
    assert scales(ETA, 2.0, 16) == [Scale(2.0, 16)]
    assert [s.eta for s in scales(ETA, 2.0)] == [2.0, 2.0]
    assert [s.batch_size for s in scales(ETA, batch_size=16)] == [16] * 3


def test_the_set_after_which_the_anchors_fare_best_is_kept_and_all_is_told(logged):
    wanted = solve_set(
        SetObjective.minibatch(SLOPES, PHI, eta=10 * ETA, batch_size=32, size=12), Limits.count(12, ROWS)
    )
    run = Run(lambda rows: 0.5 if set(rows) == set(wanted.rows) else 0.9)
    rows = select_best_set(run.scores(), Budget(count=12))
    assert rows.tolist() == wanted.rows.tolist()
    told = json.loads(json.dumps(run.notes["set"], allow_nan=False))
    assert (told["eta"], told["batch_size"]) == (pytest.approx(10 * ETA), 32)
    assert told["value"] == pytest.approx(minibatch_value(SLOPES, PHI, rows, 10 * ETA, 32))
    assert told["gap"] == pytest.approx(told["bound"] - told["value"])
    assert told["greedy_gap"] >= 0
    assert [one["loss"] for one in told["tried"]].count(0.5) >= 1
    assert len(told["tried"]) == 7
    assert (told["samples"], told["probes"]) == (12, PROBES)
    (line,) = logged().splitlines()
    assert "of 7 scales tried" in line
    assert "(0.5; sample by sample 0.9" in line


def test_batches_of_one_are_the_ranking_by_single_samples():
    run = Run()
    alone = select_best_set(run.scores(), Budget(count=9), eta=ETA, batch_size=1)
    assert alone.tolist() == Budget(count=9).top(run.scores()).tolist()
    assert run.tried == []
    assert run.notes["set"]["loss"] is None


def test_a_fixed_scale_needs_no_run():
    scores = Scores(Run().scores().table)
    assert len(select_best_set(scores, Budget(count=9), eta=ETA, batch_size=8)) == 9
    with pytest.raises(SelectorError, match="belong to no run"):
        select_best_set(scores, Budget(count=9), eta=ETA)


@pytest.mark.parametrize("within", [None, "task", "gradients.cluster"])
@pytest.mark.parametrize("size", [{"count": 12}, {"tokens": 250}])
def test_shares_are_kept_to_jointly_and_budgets_are_filled(size: dict[str, int], within: str | None):
    scores, budget = Run().scores(), Budget(**size, stratify_by=within)
    rows = select_best_set(scores, budget, eta=10 * ETA, batch_size=32)
    if "count" in size:
        assert len(rows) == 12
    else:
        left = 250 - TOKENS[rows].sum()
        others = np.setdiff1d(np.arange(ROWS), rows)
        assert left >= 0
        assert within is not None or left < TOKENS[others].min()
    if within == "task":
        costs = np.ones(ROWS) if "count" in size else TOKENS
        for task, share in (("a", 1 / 2), ("b", 1 / 3), ("c", 1 / 6)):
            of = np.array(list(TASKS)) == task
            allowed = sum(size.values()) * (share if "count" in size else TOKENS[of].sum() / TOKENS.sum())
            assert costs[rows[of[rows]]].sum() <= allowed + 1


def test_jointly_is_worth_at_least_as_much_as_task_by_task():
    scores = Run().scores()
    jointly = select_best_set(scores, Budget(count=12, stratify_by="task"), eta=10 * ETA, batch_size=64)
    apart = []
    for task, count in (("a", 6), ("b", 4), ("c", 2)):
        rows = np.flatnonzero(np.array(list(TASKS)) == task)
        apart += rows[select_best_set(scores.take(rows), Budget(count=count), eta=10 * ETA, batch_size=64)].tolist()
    values = [minibatch_value(SLOPES, PHI, np.array(rows), 10 * ETA, 64) for rows in (jointly, apart)]
    assert values[0] > values[1]


@pytest.mark.parametrize("within", [None, "task"])
def test_the_set_does_not_depend_on_the_order_of_the_rows(within: str | None):
    budget = Budget(count=12, stratify_by=within)
    order = np.random.default_rng(1).permutation(ROWS)
    first = select_best_set(Run().scores(), budget, eta=10 * ETA, batch_size=32)
    other = select_best_set(Run().scores(order), budget, eta=10 * ETA, batch_size=32)
    assert set(order[other].tolist()) == set(first.tolist())


def test_a_budget_that_affords_nothing_keeps_nothing():
    assert len(select_best_set(Run().scores(), Budget(tokens=1), eta=ETA, batch_size=8)) == 0
    assert len(select_best_set(Run().scores().take([]), Budget(count=3))) == 0


def test_what_cannot_be_a_set_is_refused():
    with pytest.raises(SelectorError, match="objective=set takes a fraction, count or tokens"):
        select_best_set(Run().scores(), Budget(threshold=0.0))
    with pytest.raises(DivergedError, match="each of the 7 sets"):
        select_best_set(Run(lambda rows: math.inf).scores(), Budget(count=12))
