"""Of the subsets tried the one that does best is kept, and every one is told."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import DivergedError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.random_numbers import draws
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.set_objective import Scale
from ostlight.selection.sets import SetSolver, scales
from ostlight.selection.tried import DRAW, LOW_LOSS, RANKING, REPEATS, first_of_the_best, pick_by_trial

ROWS, ETA, SEED = 60, 0.1, 5
RNG = np.random.default_rng(4)
SLOPES, PHI, LOSSES = RNG.standard_normal(ROWS), 2 * RNG.standard_normal((ROWS, 4)), RNG.uniform(0, 3, ROWS)
UTILITIES = ETA * SLOPES - ETA**2 / 2 * (PHI**2).sum(1)
TASKS = np.array(list("aaabbc" * (ROWS // 6)))
BUDGET = Budget(count=12)


class Run:
    """What a stage lends: the loss after each subset by a rule."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.tried: list[set[int]] = []
        self.repeats: list[int] = []
        self.notes: dict[str, Any] = {}

    def trial(self, positions: np.ndarray, repeat: int) -> float:
        self.tried.append(set(positions.tolist()))
        self.repeats.append(repeat)
        return float(self.loss(set(positions.tolist())))

    def scores(self, *without: str) -> Scores:
        columns = {"score": UTILITIES, "alignment": SLOPES, "phi": PHI.tolist(), "loss": LOSSES}
        columns |= {"step_size": [ETA] * ROWS}
        rows = [
            {"position": i, "id": f"s{i}", "state": "ok", "tags": [("task", TASKS[i])], "tokens": 1 + i % 7}
            | {name: values[i] for name, values in columns.items() if name not in without}
            for i in range(ROWS)
        ]
        context = SelectionContext(self.trial, list, self.notes.__setitem__, SEED)
        return Scores(to_table(rows)).lent(context)


def the_set(scale: Scale) -> set[int]:
    solver = SetSolver.of(Run(len).scores(), BUDGET)
    assert solver is not None
    return set(solver.solve(scale).rows.tolist())


SUBSETS = {
    RANKING: set(np.argsort(-UTILITIES)[:12].tolist()),
    DRAW: set(np.argsort(draws(SEED, [f"s{i}" for i in range(ROWS)]))[-12:].tolist()),
    LOW_LOSS: set(np.argsort(LOSSES)[:12].tolist()),
    **{f"set eta={scale.eta:g} B={scale.batch_size}": the_set(scale) for scale in scales(ETA, batch_size=32)},
}


@pytest.mark.parametrize("best", SUBSETS)
def test_whichever_does_best_is_kept_and_all_are_told(best: str, logged):
    run = Run(lambda rows: 0.25 if rows == SUBSETS[best] else 0.75)
    rows = pick_by_trial(run.scores(), BUDGET)
    assert set(rows.tolist()) == SUBSETS[best]
    if not run.notes["trial"]["kept"].startswith("set"):
        assert (np.diff(UTILITIES[rows]) <= 0).all(), "best first, whatever they were kept by"
    once = list(map(set, dict.fromkeys(map(frozenset, SUBSETS.values()))))
    assert run.tried == once * REPEATS, "equal subsets are tried once in every order"
    assert run.repeats == [r for r in range(REPEATS) for _ in once]
    told = json.loads(json.dumps(run.notes["trial"]))
    assert told["losses"] == {
        name: [0.25 if rows == SUBSETS[best] else 0.75] * REPEATS for name, rows in SUBSETS.items()
    }
    assert SUBSETS[told["kept"]] == SUBSETS[best]
    assert told["samples"] == 12
    before, line = logged().splitlines()
    assert "6 subsets are tried on the proxy, 12 trials at most" in before
    assert f"{told['kept']}: loss 0.25" in line
    assert ("a draw will do" in line) == (best == DRAW)


def test_of_equals_the_ranking_is_kept_best_first():
    assert pick_by_trial(Run(len).scores(), BUDGET).tolist() == np.argsort(-UTILITIES)[:12].tolist()


def test_the_first_that_none_beats_beyond_the_noise():
    calm = np.array([[0.50, 0.51], [0.48, 0.47], [0.30, 0.31]])
    assert first_of_the_best(calm) == 2
    assert first_of_the_best(calm[:2]) == 1
    noisy = np.array([[0.60, 0.40], [0.55, 0.38], [0.20, 0.21]])
    assert first_of_the_best(noisy[:2]) == 0
    assert first_of_the_best(noisy) == 2
    assert first_of_the_best(10 * noisy[:2]) == 0, "whatever the unit of the loss"
    assert first_of_the_best(np.array([[0.1, np.inf], [0.9, 0.8]])) == 1
    with pytest.raises(DivergedError, match="in some order"):
        first_of_the_best(np.array([[0.1, np.inf], [np.inf, 0.8]]))


def test_noise_alone_seldom_leads_off_the_first():
    """Equal subsets: the last of six is the lowest a sixth of the time, and is kept far less often."""
    rng = np.random.default_rng(0)
    kept = [first_of_the_best(np.exp(rng.normal(-3, 0.1, (6, 2)))) for _ in range(4_000)]
    assert np.mean(np.array(kept) == 5) < 0.08


def test_a_subset_whose_training_diverged_is_never_kept():
    run = Run(lambda rows: math.inf if rows == SUBSETS[RANKING] else 2.0)
    assert set(pick_by_trial(run.scores(), BUDGET).tolist()) == SUBSETS[DRAW]
    assert run.notes["trial"]["losses"][RANKING] is None
    with pytest.raises(DivergedError, match=f"each of the {len(SUBSETS)} sets"):
        pick_by_trial(Run(lambda rows: math.inf).scores(), BUDGET)


@pytest.mark.parametrize(
    "budget", [Budget(count=12, stratify_by="task"), Budget(tokens=60), Budget(tokens=60, stratify_by="task")]
)
def test_every_subset_keeps_to_the_budget_and_its_shares(budget: Budget):
    run = Run(len)
    scores = run.scores()
    pick_by_trial(scores, budget)
    assert list(run.notes["trial"]["losses"]) == list(SUBSETS)
    for rows in map(list, run.tried):
        assert (len(rows) == 12) if budget.count else (scores.tokens[rows].sum() <= 60)
        if budget.stratify_by and budget.count:
            assert [(TASKS[rows] == task).sum() for task in "abc"] == [6, 4, 2]


def test_without_curvature_no_sets_are_tried():
    run = Run(len)
    pick_by_trial(run.scores("phi", "alignment", "step_size"), BUDGET)
    assert list(run.notes["trial"]["losses"]) == [RANKING, DRAW, LOW_LOSS]


@pytest.mark.parametrize("budget", [Budget(threshold=0.0), Budget(fraction=1.0)])
def test_nothing_is_tried_where_there_is_nothing_to_choose(budget: Budget):
    run = Run(len)
    assert pick_by_trial(run.scores(), budget).tolist() == budget.top(run.scores()).tolist()
    assert run.tried == []


def test_outside_a_run_the_ranking_is_kept():
    scores = Scores(Run(len).scores().table)
    assert pick_by_trial(scores, BUDGET).tolist() == BUDGET.top(scores).tolist()
