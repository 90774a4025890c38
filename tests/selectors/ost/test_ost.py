"""``ost`` selects the highest utilities, or a set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostlight
from ostlight.errors import ConfigError, OstlightError, SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import minibatch_value
from ostlight_selectors.ost.options import STORED_BY

pytestmark = pytest.mark.usefixtures("few_samples_compared")

TOP = {"selection": "top", "estimator": "second_order", "probes": 8, "step_size": 0.05}
SET = TOP | {"selection": "set", "set_step_size": 1.0, "set_batch_size": 32}


def test_a_set_is_worth_more_as_a_set_than_the_best_single_samples(settings):
    alone = ostlight.select(settings(selector={"name": "ost", "options": TOP}))
    together = ostlight.select(settings(selector={"name": "ost", "options": SET}))
    assert [e.stage for e in together.folder.cost_log.read()] == ["score", "select", "select"]
    scores = Scores.read(together.folder.scores)
    alignments, phi = scores.column("alignment"), scores.column("phi")
    values = [minibatch_value(alignments, phi, s.kept, eta=0.05, batch_size=32) for s in (together, alone)]
    assert values[0] > values[1]
    assert len(together.kept) == len(alone.kept) == 10


def test_a_set_within_tags_and_within_tokens(settings):
    config = settings(selector={"name": "ost", "options": SET})
    selection = ostlight.select(config, "budget.fraction=0.3", "budget.stratify_by=task")
    tasks = Scores.read(selection.folder.scores).tag("task")[selection.kept]
    assert len(set(tasks)) == 7
    fewer = ostlight.select(config, "budget.tokens=200")
    assert 0 < sum(Scores.read(fewer.folder.scores).tokens[fewer.kept]) <= 200


@pytest.mark.parametrize("options", [pytest.param(TOP, id="top"), pytest.param(SET, id="set", marks=pytest.mark.slow)])
def test_shares_by_the_anchors_groups(settings, options: dict[str, Any]):
    anchors = settings()["anchors"] | {"group": "task"}
    config = settings(selector={"name": "ost", "options": options}, anchors=anchors)
    selection = ostlight.select(config, "budget.count=14", "budget.stratify_by=anchors.group")
    best = Scores.read(selection.folder.scores).column("utility_by_group").argmax(1)
    counts, there = np.bincount(best[selection.kept], minlength=7), np.bincount(best, minlength=7)
    assert counts.sum() == 14
    assert (counts >= np.minimum(there, 2)).all()


def test_a_set_needs_probes_and_a_size(settings):
    first = {"name": "ost", "options": {"estimator": "first_order", "selection": "set"}}
    with pytest.raises(ConfigError, match="selection=set needs estimator=projected or second_order"):
        ostlight.select(settings(selector=first))
    with pytest.raises(SelectorError, match="selection=set takes a fraction, count or tokens"):
        ostlight.select(settings(name="two", selector={"name": "ost", "options": SET}), "budget.threshold=0")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ost", {"estimator": "third_order"}, "estimator must be one of projected, exact, first_order, second_order"),
        ("ost", {"step_size": -1.0}, "step_size must be a number, above 0, or null; got -1.0"),
        ("ost", {"step": "lion"}, "step must be one of sgd, adam, kfac, ekfac, or null; got 'lion'"),
        ("ost", {"optimizer": "adam"}, r"optimizer was renamed; write selector.options.step$"),
        ("ost", {"selection": "best"}, "selection must be one of filter, top, sample, round_robin, set; got 'best'"),
        ("ost", {"set_batch_size": 0}, "set_batch_size must be a whole number, at least 1, or null; got 0"),
        ("ost", {"objective": "trial"}, "objective=trial: use the selector best_of"),
        (
            "ost",
            {"objective": "sample", "set_eta": 1},
            r"(?s)objective=sample: leave it out.*set_eta: write set_step_size",
        ),
    ],
)
def test_options_out_of_range(settings, name: str, options: dict[str, Any], says: str):
    with pytest.raises(OstlightError, match=says):
        ostlight.select(settings(selector={"name": name, "options": options}))


@pytest.mark.parametrize("estimator", ["finite_difference", "exact", "first_order", "second_order", "projected"])
def test_which_columns_an_estimator_stores(settings, estimator: str):
    further = {"second_order": {"probes": 4}, "projected": {"rank": 4}}.get(estimator, {})
    options = {"estimator": estimator, "step": "sgd", "step_size": 0.05, "selection": "filter", **further}
    selection = ostlight.select(settings(selector={"name": "ost", "options": options}))
    stored = {column for column in STORED_BY if column in Scores.read(selection.folder.scores)}
    assert stored == {column for column, storing in STORED_BY.items() if estimator in storing}


@pytest.mark.parametrize("then", ["-gradient_norm", "coverage", "cosine"])
def test_an_order_by_a_column_that_will_not_be_stored_is_refused_before_scoring(settings, tmp_path, then: str):
    with pytest.raises(SelectorError, match=r"estimator=finite_difference does not store; set selector\.options"):
        ostlight.select(settings(selector={"name": "ost", "options": {"then": then}}))
    assert not list((tmp_path / "runs" / "run" / "scores").glob("*.parquet"))
