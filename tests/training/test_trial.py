"""A trial: a fresh proxy every time, a fixed number of steps, the anchors alone."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.training import trial
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.kept_trials import KeptTrials
from ostlight.training.loss_monitor import mean_loss
from ostlight.training.steps import EncodedPool
from ostlight.training.trial import Trials

ROWS = np.array([5, 1, 9, 30])


@pytest.fixture
def setup(proxy, samples, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "TRIAL_STEPS", 4)
    compute = Compute(accelerator="cpu", logger="none", progress=False)

    def make(lr: float = 1e-3) -> tuple[Trials, StageCost, Compute]:
        def load():
            model = proxy("float32")
            model.training_settings = Training(epochs=3, batch_size=2, lr=lr)
            return model

        entry = StageCost("select")
        pool, trusted = Pool.open(digits.pool), samples("anchors")
        return Trials(load, pool, trusted, compute, tmp_path, 0, entry), entry, compute

    return make


def test_the_loss_is_the_anchors_after_training_on_these_records_only(setup, proxy, samples, digits, tmp_path):
    trials, entry, compute = setup()
    model = proxy("float32")
    before = mean_loss(model, model.batches(samples("anchors"), 4096))
    model.training_settings = Training(steps=4, batch_size=2, lr=1e-3)
    cost = StageCost("train")
    fit(model, EncodedPool(Pool.open(digits.pool), ROWS, model.encoder), TrainingJob(compute, tmp_path, "t"), cost)
    expected = mean_loss(model, model.batches(samples("anchors"), 4096))
    assert trials(ROWS) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(before, rel=1e-3)
    assert entry.tokens == cost.tokens > 0
    assert entry.flops > cost.flops > 0


def test_every_trial_starts_afresh_and_adds_its_cost(setup, logged):
    trials, entry, _ = setup()
    first = trials(ROWS)
    first_cost = copy.deepcopy(dataclasses.asdict(entry))
    other = trials(ROWS + 1)
    assert trials(ROWS) == first != other
    assert trials(ROWS, 1) != first, "another order"
    assert entry.flops == pytest.approx(4 * first_cost["flops"], rel=0.2)
    assert (first_cost["more"]["trials"], entry.more["trials"]) == (1, 4)
    (line,) = logged().splitlines()
    assert line.startswith("trial: 4 steps: about "), "logged once, before the first"


def test_no_two_runs_share_the_order_of_a_trial(setup, monkeypatch):
    seeds = []
    monkeypatch.setattr(trial, "fit", lambda model, data, job, cost: seeds.append(job.seed))
    trials, _, _ = setup()
    for trials.seed in range(4):
        for repeat in range(4):
            trials(ROWS, repeat)
    assert len(set(seeds)) == 16
    assert seeds[::4] == [0, 1, 2, 3], "the first order is that of the run's own seed"


def test_a_trial_that_diverges_is_infinitely_bad_and_paid_for(setup):
    trials, entry, _ = setup(lr=1e30)
    assert trials(ROWS) == math.inf
    assert entry.more["trials"] == 1
    assert entry.flops > 0


def test_a_trial_that_is_kept_is_not_repeated_and_costs_and_gives_the_same(setup, tmp_path, monkeypatch):
    trials, entry, _ = setup()
    trials.kept, trials.group_tag = KeptTrials(tmp_path / "trials", {"proxy": "a"}), "task"
    first = trials(ROWS)
    assert first.by_group
    again, second, _ = setup()
    again.kept, again.group_tag = KeptTrials(tmp_path / "trials", {"proxy": "a"}), "task"
    monkeypatch.setattr(trial, "fit", lambda *_: pytest.fail("it is trained again"))
    found = again(ROWS)
    assert (float(found), found.by_group) == (float(first), first.by_group)
    assert (second.flops, second.tokens) == (entry.flops, entry.tokens)
    assert (second.more["trials"], second.more["trials_kept"]) == (1, 1)


def test_a_trial_that_diverged_is_kept_too(setup, tmp_path):
    for _ in range(2):
        trials, entry, _ = setup(lr=1e30)
        trials.kept = KeptTrials(tmp_path / "trials", {})
        assert trials(ROWS) == math.inf
    assert entry.more["trials_kept"] == 1


@pytest.mark.parametrize("changed", ["rows", "order", "seed", "steps", "made from"])
def test_a_kept_trial_is_that_of_these_very_settings(changed, tmp_path):
    key = KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS, 0, 4)
    assert key == KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS.copy(), 0, 4)
    other = {
        "rows": KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS + 1, 0, 4),
        "order": KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS[::-1], 0, 4),
        "seed": KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS, 1, 4),
        "steps": KeptTrials(tmp_path, {"proxy": "a"}).key(ROWS, 0, 5),
        "made from": KeptTrials(tmp_path, {"proxy": "b"}).key(ROWS, 0, 4),
    }
    assert other[changed] != key


def test_all_ranks_see_the_trials_that_were_there_at_first(tmp_path):
    mine, late = KeptTrials(tmp_path, {}), KeptTrials(tmp_path, {})
    assert late.get("a") is None
    mine.put("a", {"loss": 1.0})
    assert late.get("a") is None, "another rank would not train with this one"
    assert KeptTrials(tmp_path, {}).get("a") == {"loss": 1.0}
