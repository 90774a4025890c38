"""The warm-up: kept where it helps, undone where it harms, its step lengths remembered."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ostlight
from ostlight.digitmath.model import checkpoint
from ostlight.influence.parameters import select_parameters
from ostlight.influence.step_size import median_step_size
from ostlight.models.influence_task import SampleTask
from ostlight.pipeline.warmup import seconds_per_sample
from ostlight.training.optimizer_records import median_update_norm

pytestmark = pytest.mark.usefixtures("few_samples_compared")

OST = {"name": "ost", "options": {"estimator": "first_order"}}


def warmup(lr: float) -> dict:
    return {
        "path": str(checkpoint("proxy")),
        "warmup": {"fraction": 0.5, "training": {"lr": lr, "batch_size": 4, "schedule": "constant"}},
    }


def test_a_warm_up_that_ruins_the_proxy_is_undone(settings, logged):
    selection = ostlight.select(settings(proxy=warmup(lr=1.0), selector=OST))
    out = " ".join(logged().split())
    assert "warm-up undone: loss on the anchors (no development set is named)" in out
    summary = json.loads((selection.folder.proxy / "warmup.json").read_text())
    assert summary["kept_step"] == 0
    now, before = (load_file(f / "model.safetensors") for f in (selection.folder.proxy, checkpoint("proxy")))
    assert all(torch.equal(now[k], before[k].to(now[k].dtype)) for k in before)
    left = {file.name for file in selection.folder.proxy.iterdir()}
    assert not left & {"update_norms.npz", "second_moments.safetensors"}, "undone steps shape nothing"


def test_the_loss_is_monitored_on_the_development_set_where_there_is_one(settings, digits):
    selection = ostlight.select(settings(proxy=warmup(lr=1e-4), selector=OST, dev={"path": str(digits.dev)}))
    summary = json.loads((selection.folder.proxy / "warmup.json").read_text())
    assert summary["monitored_on"] == "development set"
    assert summary["losses"][0][0] == 0
    assert len(summary["losses"]) >= 2
    warm_up = selection.folder.cost_log.read()[0]
    assert warm_up.stage == "warm-up"
    assert 0 < warm_up.more["checks_s"] < warm_up.wall_s
    without_checks = (warm_up.wall_s - warm_up.more["checks_s"]) / warm_up.samples
    assert seconds_per_sample(selection.folder) == pytest.approx(without_checks)


def test_eta_makes_the_median_step_as_long_as_the_warm_ups(settings, proxy, samples):
    selection = ostlight.select(settings(proxy=warmup(lr=1e-4), selector=OST))
    model = proxy("float32")
    parameters = select_parameters(model.model, "blocks")
    stored = np.load(selection.folder.proxy / "update_norms.npz")
    mine = [k for k, n in enumerate(stored["names"]) if str(n) in parameters]
    by_hand = np.median([np.linalg.norm(step[mine]) for step in stored["norms"]])
    assert median_update_norm(selection.folder.proxy, parameters) == pytest.approx(by_hand)
    singles = model.batches(samples("pool")[:9], 1)
    eta = median_step_size(model.model, parameters, singles, 0.7, task=SampleTask())
    norms = []
    for single in singles:
        model.zero_grad()
        model.losses(single).sum().backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters.values()]).norm()))
    assert float(np.median(norms)) * eta == pytest.approx(0.7, rel=1e-4)


def test_adam_steps_take_the_warm_ups_second_moments(settings, logged):
    adam = {
        "name": "ost",
        "options": {"estimator": "second_order", "probes": 4, "step": "adam"},
    }
    selection = ostlight.select(settings(proxy=warmup(lr=1e-4), selector=adam))
    out = logged()
    assert "adam steps, shaped by the warm-up's second moments" in out
    assert "rank agreement of second_order with exact: " in out
    stored = load_file(selection.folder.proxy / "second_moments.safetensors")
    named = {n for n in load_file(selection.folder.proxy / "model.safetensors") if "layers.0" in n}
    assert named
    assert all((v >= 0).all() for v in stored.values())
    assert selection.rejected == {}
