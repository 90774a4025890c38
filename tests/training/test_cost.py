"""FLOPs of a training are those of its steps, also where the first one, which is counted, is longer than the others;
with those of its checks on trusted samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.models.flops import FlopCounter
from ostlight.training import fit as fitting
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor, check_steps, counted
from ostlight.training.steps import EncodedPool, StepDataset

STEPS, BATCH = 6, 4


def test_they_are_within_10_percent_of_counting_all_steps(proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pool = tmp_path / "pool.jsonl"
    lines = [
        {"id": f"r{k}", "question": "3 and 4 " * (9 if k < BATCH else 2), "answer": "7"} for k in range(STEPS * BATCH)
    ]
    pool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = list(np.arange(STEPS * BATCH).reshape(STEPS, BATCH))
    monkeypatch.setattr(fitting, "plan_steps", lambda *_: plan)
    model, cost = proxy("float32"), StageCost("train")
    model.training_settings = Training(epochs=1, batch_size=BATCH, lr=1e-4)
    data = EncodedPool(Pool.open(pool), range(len(lines)), model.encoder)
    compute = Compute(accelerator="cpu", logger="none", workers=0)
    fit(model, data, TrainingJob(compute, tmp_path, "train", quiet=True), cost)
    with FlopCounter() as counter:
        for step in (StepDataset(data, plan, model.collator, compute.tokens_per_batch)[k] for k in range(STEPS)):
            for micro in step.micro_batches:
                model.losses(micro).mean().backward()
    assert cost.flops == pytest.approx(counter.total, rel=0.1)


@pytest.mark.parametrize("patience", [1, None])
def test_checks_on_trusted_samples_are_counted(proxy, samples, digits, tmp_path: Path, patience: int | None):
    model = proxy("float32")
    trusted = model.batches(samples("anchors"), 256)
    assert len(trusted) > 1
    model.training_settings = Training(steps=20, batch_size=BATCH, lr=0.3)
    data = EncodedPool(Pool.open(digits.pool), range(8), model.encoder)
    job = TrainingJob(Compute(accelerator="cpu", logger="none", workers=0), tmp_path, "train", quiet=True)
    with FlopCounter() as counter, torch.no_grad():
        for batch in trusted:
            model.losses(batch)
    costs = []
    for monitor in (None, LossMonitor(lambda: trusted, patience)):
        cost = StageCost("train")
        callbacks = [] if monitor is None else [monitor]
        with counted(monitor, cost):
            fit(model, data, dataclasses.replace(job, callbacks=callbacks), cost)
        costs.append(cost)
    plain, watched = costs
    assert monitor is not None
    steps = [step for step, _ in monitor.losses]
    assert steps == check_steps(20)[: len(steps)]
    assert (len(steps) < len(check_steps(20))) == (patience == 1)
    of_steps = plain.flops * watched.samples / plain.samples
    assert watched.flops == pytest.approx(of_steps + len(steps) * counter.total, rel=0.05)
    assert 0 < watched.more["checks_s"] < 60
    assert "checks_s" not in plain.more


def test_steps_at_which_trusted_samples_are_looked_at():
    assert check_steps(1) == [0, 1]
    assert check_steps(20) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert check_steps(17) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 17]
    assert check_steps(80) == list(range(0, 81, 10))
