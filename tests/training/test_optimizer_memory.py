"""Memory runs out in the optimizer: one line with what to do, and no smaller batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.errors import OstlightError
from ostlight.models.cost import StageCost
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool


def test_the_cure_is_told_in_one_line(proxy, digits, tmp_path, monkeypatch):
    def full(optimizer: torch.optim.AdamW, *_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    model = proxy("float32")
    model.training_settings = Training(steps=1, batch_size=2)
    compute = Compute(accelerator="cpu", logger="none", progress=False)
    data = EncodedPool(Pool.open(digits.pool), np.arange(4), model.encoder)
    with pytest.raises(OstlightError) as caught:
        fit(model, data, TrainingJob(compute, tmp_path, "train"), StageCost("train"))
    assert "target.lora" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.budget.most is None
