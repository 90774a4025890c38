"""A budget spent on anything that helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ostlight.scoring.rows import to_table
from ostlight.selection.budget import Budget
from ostlight.selection.helpful import any_that_helps
from ostlight.selection.scores import Scores
from ostlight_selectors.ost import OneStepTrain

RNG = np.random.default_rng(5)
UTILITIES = np.concatenate([RNG.uniform(1e-9, 1e-6, 60), RNG.uniform(1, 2, 60), -RNG.uniform(0, 1, 80)])
SELECTOR = OneStepTrain(OneStepTrain.Options(objective="helpful"))


def scores_of(order: Sequence[int] = range(len(UTILITIES))) -> Scores:
    rows = [
        {
            "position": k,
            "id": f"r{i}",
            "state": "ok",
            "score": UTILITIES[i],
            "tags": [("task", "ab"[i % 2])],
            "tokens": 7,
        }
        for k, i in enumerate(order)
    ]
    return Scores(to_table(rows))


def kept(budget: Budget, scores: Scores) -> list[str]:
    return [scores.ids[row] for row in SELECTOR.pick(scores, budget)]


def test_all_that_helps_comes_first_and_large_utilities_no_sooner_than_small():
    first = [int(name[1:]) for name in kept(Budget(count=60), scores_of())]
    assert max(first) < 120
    large = sum(i >= 60 for i in first)
    assert 18 <= large <= 42, "30 of 60 are expected; the hypergeometric standard deviation is 2.7"


def test_behind_it_comes_what_hurts_least():
    everything = [int(name[1:]) for name in kept(Budget(fraction=1.0), scores_of())]
    assert sorted(everything[:120]) == list(range(120))
    assert (np.diff(UTILITIES[everything[120:]]) <= 0).all()


def test_the_draw_hangs_on_the_records_and_grows_with_the_budget():
    backwards = scores_of(range(len(UTILITIES))[::-1])
    assert kept(Budget(count=40), scores_of()) == kept(Budget(count=40), backwards)
    assert kept(Budget(count=40), scores_of()) == kept(Budget(count=90), scores_of())[:40]
    assert any_that_helps(scores_of()).positions.tolist() == list(range(len(UTILITIES)))


@pytest.mark.parametrize("budget", [Budget(count=50, within="task"), Budget(tokens=350, within="task")])
def test_shares_are_kept(budget: Budget):
    picked = [int(name[1:]) % 2 for name in kept(budget, scores_of())]
    assert (len(picked), sum(picked)) == (50, 25)


def test_a_threshold_is_one_of_utilities():
    assert len(kept(Budget(threshold=0.5), scores_of())) == 60
