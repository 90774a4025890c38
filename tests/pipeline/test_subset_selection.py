"""What a selector may ask for while it selects: trials on the proxy, charged to the cost log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ostlight
from ostlight.errors import SelectorError
from ostlight.selection.registry import register
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector


@register("test-tries-halves")
class TriesHalves(Selector):
    """Keeps the half of the pool that does the anchors more good."""

    uses_proxy = True
    steps: int | None = 2

    def score(self, batch):
        return {"score": [float(sample.position) for sample in batch.samples]}

    def select(self, scores, budget):
        halves = np.array_split(np.arange(len(scores)), 2)
        losses = [scores.trial(half, steps=self.steps) for half in halves]
        scores.context.note("halves", losses)
        return halves[int(np.argmin(losses))]


@register("test-tries-blindly")
class TriesBlindly(TriesHalves):
    """The same without a proxy."""

    uses_proxy = False


@register("test-tries-by-default")
class TriesByDefault(TriesHalves):
    """The same with trials of the default length."""

    steps = None


WARM = {"fraction": 0.2, "training": {"steps": 2, "batch_size": 4, "lr": 1e-3}}


def _halves(config: dict) -> list[float]:
    folder = ostlight.select(config | {"selector": {"name": "test-tries-halves"}}).folder
    return folder.cost_log.read()[-1].more["noted"]["halves"]


def test_a_selector_tries_sets_on_the_proxy(settings):
    selection = ostlight.select(settings(selector={"name": "test-tries-halves"}))
    selecting = next(e for e in selection.folder.cost_log.read() if e.stage == "select")
    assert selecting.more["trials"] == 2
    assert selecting.flops > 0
    assert selecting.device_s > 0
    assert selecting.more["budget"] == "20%"
    halves = np.array_split(Scores.read(selection.folder.scores).positions, 2)
    assert selection.kept.tolist() == halves[int(np.argmin(selecting.more["noted"]["halves"]))].tolist()


@register("test-keeps-two")
class KeepsTwo(Selector):
    """Keeps two samples, whatever the budget."""

    def score(self, batch):
        return {"score": [float(sample.position) for sample in batch.samples]}

    def select(self, scores, budget):
        return np.arange(2)


def test_a_selector_that_keeps_another_number_than_the_budget_asks_for_is_told_of(settings, logged):
    config = settings(selector={"name": "test-keeps-two"}, budget={"count": 5})
    ostlight.select(config)
    assert "test-keeps-two keeps 2 samples, where the budget (5) asks for 5" in logged()
    ostlight.select(config, "budget.count=1")
    assert "test-keeps-two keeps 2 samples, where the budget (1) asks for 1" in logged()
    ostlight.select(config, "budget.count=2")
    ostlight.select(config, "budget.threshold=0.0")
    assert "where the budget" not in logged()


@pytest.mark.slow
def test_a_trial_takes_100_steps_by_default(settings):
    tokens = {}
    for name in ("test-tries-halves", "test-tries-by-default"):
        folder = ostlight.select(settings(name=name, selector={"name": name})).folder
        tokens[name] = folder.cost_log.read()[-1].tokens
    assert tokens["test-tries-by-default"] == pytest.approx(100 / 2 * tokens["test-tries-halves"], rel=0.2)


def test_trials_start_from_the_proxy_as_it_came(settings):
    cold = settings(name="cold")
    cold["proxy"] |= {"warmup": WARM | {"fraction": 0}}
    warmed = settings(name="warmed")
    warmed["proxy"] |= {"warmup": WARM}
    assert _halves(warmed) == pytest.approx(_halves(cold), rel=1e-6)


def test_trials_are_read_on_the_development_set_and_without_one_on_the_anchors(settings):
    other = settings()["test"]
    on_anchors = _halves(settings(name="anchors"))
    on_dev = _halves(settings(name="dev", dev=other))
    assert on_dev == pytest.approx(_halves(settings(name="as-anchors", anchors=other)), rel=1e-6)
    assert on_dev != pytest.approx(on_anchors, rel=1e-3)


def test_a_benchmark_counts_trials_once_in_every_cell_that_uses_them(settings):
    section = {
        "selectors": [{"name": "test-tries-halves"}],
        "budgets": [{"fraction": 0.5}],
        "seeds": [0, 1],
    }
    ostlight.benchmark(settings(benchmark=section))
    folder = Path(settings()["folder"]) / "run"
    figures = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    mine = [f["value"] for f in figures if f["selector"] != "base" and f["metric"] == "selection_flops"]
    (cost_log,) = folder.glob("selectors/test-tries-halves-*/cost_log.jsonl")
    entries = [json.loads(line) for line in cost_log.read_text().splitlines()]
    assert [e["stage"] for e in entries] == ["score", "select"]
    assert mine == [pytest.approx(sum(e["flops"] for e in entries))] * 2


def test_without_a_proxy_without_anchors_and_without_a_run(settings):
    with pytest.raises(SelectorError, match="'test-tries-blindly' asks for a trial.*without `uses_proxy = True`"):
        ostlight.select(settings(selector={"name": "test-tries-blindly"}))
    config = settings(name="bare", selector={"name": "test-tries-halves"}, anchors={})
    with pytest.raises(
        SelectorError, match=r"asks for a trial, which is measured on trusted samples.*dev\.path or anchors\.path"
    ):
        ostlight.select(config)
    scores = Scores.read(ostlight.select(settings(name="random")).folder.scores)
    with pytest.raises(SelectorError, match="belong to no run"):
        scores.trial([0])
