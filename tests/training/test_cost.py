"""FLOPs of a training are those of its steps, also where the first one, which is counted, is longer than the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.models.flops import FlopCounter
from ostlight.training import fit as fitting
from ostlight.training.fit import TrainingJob, fit
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
