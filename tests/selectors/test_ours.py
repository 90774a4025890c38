"""Our own selectors, each by what it promises."""

from __future__ import annotations

import numpy as np
import pytest

import ostlight
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import minibatch_value

SET = {"estimator": "second_order", "probes": 8, "step_size": 0.05, "objective": "set"}
AT_SCALE = SET | {"set_eta": 0.05, "batch_size": 32}


def test_loss_keeps_the_easiest_or_the_hardest(settings):
    low = ostlight.select(settings(name="low", selector={"name": "loss"}), "budget.count=5")
    losses = Scores.read(low.folder.scores).column("loss")
    assert sorted(losses[low.kept]) == sorted(losses)[:5]
    hard = {"name": "loss", "options": {"prefer": "high"}}
    high = ostlight.select(settings(name="high", selector=hard), "budget.count=5")
    assert sorted(losses[high.kept]) == pytest.approx(sorted(losses)[-5:])


def test_a_set_is_worth_more_as_a_set_than_the_best_single_samples(settings):
    alone = ostlight.select(settings(selector={"name": "ost", "options": SET | {"objective": "sample"}}))
    together = ostlight.select(settings(selector={"name": "ost", "options": AT_SCALE}))
    assert [e.stage for e in together.folder.cost_log.read()] == ["score", "select", "select"]
    scores = Scores.read(together.folder.scores)
    slopes, phi = scores.column("alignment"), scores.column("phi")
    values = [minibatch_value(slopes, phi, s.kept, eta=0.05, batch_size=32) for s in (together, alone)]
    assert values[0] > values[1]
    assert len(together.kept) == len(alone.kept) == 10


def test_a_sets_scale_is_tried_on_the_proxy_for_every_budget_and_nothing_is_scored_again(settings, logged):
    config = settings(selector={"name": "ost", "options": SET})
    for budget in ("budget.count=10", "budget.count=20"):
        folder = ostlight.select(config, budget).folder
    entries = folder.cost_log.read()
    assert [e.stage for e in entries] == ["score", "select", "select"]
    assert all(2 <= e.more["trials"] <= 7 and e.flops > 0 for e in entries[1:])
    assert [e.more["noted"]["set"]["samples"] for e in entries[1:]] == [10, 20]
    assert logged().count("of 7 scales tried") == 2


def test_a_set_within_tags_and_within_tokens(settings):
    config = settings(selector={"name": "ost", "options": AT_SCALE})
    selection = ostlight.select(config, "budget.fraction=0.3", "budget.stratify_by=task")
    tasks = Scores.read(selection.folder.scores).tag("task")[selection.kept]
    assert len(set(tasks)) == 7
    fewer = ostlight.select(config, "budget.tokens=200")
    assert 0 < sum(Scores.read(fewer.folder.scores).tokens[fewer.kept]) <= 200


def test_the_best_of_several_subsets_is_tried_out_for_every_budget(settings, logged):
    config = settings(
        selector={"name": "ost", "options": {name: value for name, value in SET.items() if name != "objective"}}
    )
    for budget in ("budget.count=10", "budget.count=20"):
        selection = ostlight.select(config, budget)
    entries = selection.folder.cost_log.read()
    assert [e.stage for e in entries] == ["score", "select", "select"]
    losses = entries[2].more["noted"]["trial"]["losses"]
    assert {"sample by sample", "low loss", "at random"} < set(losses)
    assert 6 <= entries[2].more["trials"] <= 2 * len(losses) == 12
    assert [e.more["budget"] for e in entries[1:]] == ["10", "20"]
    assert len(selection.kept) == 20
    assert logged().count(" on the trusted samples after a brief training of the proxy, mean of 2; ") == 2
    ranking = ostlight.select(config, "budget.threshold=0", "name=threshold").folder.cost_log.read()[-1]
    assert "trials" not in ranking.more


@pytest.mark.parametrize("objective", ["sample", "set"])
def test_shares_by_the_anchors_groups(settings, objective: str):
    anchors = settings()["anchors"] | {"group": "task"}
    options = AT_SCALE | {"objective": objective}
    config = settings(selector={"name": "ost", "options": options}, anchors=anchors)
    selection = ostlight.select(config, "budget.count=14", "budget.stratify_by=anchors.group")
    best = Scores.read(selection.folder.scores).column("utility_by_group").argmax(1)
    counts, there = np.bincount(best[selection.kept], minlength=7), np.bincount(best, minlength=7)
    assert counts.sum() == 14
    assert (counts >= np.minimum(there, 2)).all()


def test_a_set_needs_probes_and_a_size(settings):
    first = {"name": "ost", "options": {"estimator": "first_order", "objective": "set"}}
    with pytest.raises(SelectorError, match="objective=set needs estimator=projected or second_order"):
        ostlight.select(settings(selector=first))
    with pytest.raises(SelectorError, match="objective=set takes a fraction, count or tokens"):
        ostlight.select(settings(name="two", selector={"name": "ost", "options": SET}), "budget.threshold=0")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ost", {"estimator": "third_order"}, "estimator must be one of projected, exact, first_order, second_order"),
        ("ost", {"step_size": -1.0}, "step_size must be above 0; got -1.0"),
        ("ost", {"optimizer": "lion"}, "optimizer must be one of sgd, adam; got 'lion'"),
        ("loss", {"prefer": "odd"}, "prefer must be low, high or middle; got 'odd'"),
    ],
)
def test_options_out_of_range(settings, name: str, options: dict, says: str):
    with pytest.raises(SelectorError, match=says):
        ostlight.select(settings(selector={"name": name, "options": options}))
