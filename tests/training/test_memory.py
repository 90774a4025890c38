"""Memory runs out in training: micro-batches halve, for good, and the steps stay what they were."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.errors import OstlightError
from ostlight.models.cost import StageCost
from ostlight.models.module import MultimodalModel
from ostlight.training import trial
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool
from ostlight.training.trial import Trials

ROWS = np.arange(16)
PLENTY = 10**9


@pytest.fixture
def limit(monkeypatch) -> dict[str, Any]:
    """Padded tokens that fit; what does not fails in the backward pass, when part of the gradient is there."""
    said: dict[str, Any] = {"tokens": PLENTY, "seen": []}
    losses = MultimodalModel.losses

    def tight(model: MultimodalModel, batch: Any) -> torch.Tensor:
        found = losses(model, batch)
        if torch.is_grad_enabled():
            said["seen"].append(batch.labels.numel())
            if batch.labels.numel() > said["tokens"]:
                found.sum().backward(retain_graph=True)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return found

    monkeypatch.setattr(MultimodalModel, "losses", tight)
    return said


@pytest.fixture
def trained(proxy, digits, tmp_path, logged):
    def train() -> tuple[dict[str, torch.Tensor], StageCost, list[str]]:
        model, entry = proxy("float64"), StageCost("train")
        model.training_settings = Training(steps=3, batch_size=8, lr=1e-3)
        compute = Compute(accelerator="cpu", logger="none", progress=False, tokens_per_batch=1_000)
        data = EncodedPool(Pool.open(digits.pool), ROWS, model.encoder)
        fit(model, data, TrainingJob(compute, tmp_path, "warm-up"), entry)
        return {name: p.detach().clone() for name, p in model.trained.items()}, entry, logged().splitlines()

    return train


def test_the_steps_stay_the_same_and_the_halving_is_told_and_kept(limit, trained):
    whole, entry, said = trained()
    assert "out_of_memory" not in entry.more
    assert len(said) == 1
    largest, limit["seen"] = max(limit["seen"]), []
    limit["tokens"] = largest // 2
    tight, entry, said = trained()
    for name, expected in whole.items():
        assert torch.allclose(tight[name], expected, rtol=1e-9, atol=1e-12), name
    messages = [line for line in said if "out of memory" in line]
    assert messages[0].startswith("warm-up: out of memory on a micro-batch of 8 samples: from here on one has at most")
    assert entry.more["out_of_memory"] in messages[-1]
    failed = [k for k, tokens in enumerate(limit["seen"]) if tokens > limit["tokens"]]
    assert failed
    assert max(failed) < len(limit["seen"]) // 2, "it is not found out again at every step"


def test_where_a_sample_alone_does_not_fit_the_error_says_what_to_change(limit, trained):
    limit["tokens"] = 1
    with pytest.raises(OstlightError, match=r"samples one by one, the longest of \d+ tokens: .*lower max_length"):
        trained()


def test_the_next_trial_begins_with_what_fitted(limit, proxy, samples, digits, tmp_path, monkeypatch, logged):
    monkeypatch.setattr(trial, "TRIAL_STEPS", 2)
    compute = Compute(accelerator="cpu", logger="none", progress=False, tokens_per_batch=1_000)

    def load() -> MultimodalModel:
        model = proxy("float32")
        model.training_settings = Training(batch_size=8, lr=1e-3)
        return model

    entry = StageCost("select")
    trials = Trials(load, Pool.open(digits.pool), samples("anchors"), compute, tmp_path, 0, entry)
    assert math.isfinite(trials(ROWS))
    limit["tokens"], limit["seen"] = max(limit["seen"]) // 2, []
    assert math.isfinite(trials(ROWS))
    assert len([line for line in logged().splitlines() if line.startswith("trial: out of memory")]) == 1
    assert entry.more["out_of_memory"]
    assert max(limit["seen"]) > limit["tokens"]
    limit["seen"] = []
    assert math.isfinite(trials(ROWS))
    assert max(limit["seen"]) <= limit["tokens"]
