"""The learning rate of every step: a linear rise, then half a cosine to the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool

STEPS, PEAK = 10, 2e-4


class Rates(Callback):
    """What the optimiser makes each step with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def rates(proxy, digits, tmp_path: Path):
    def of(**schedule: Any) -> list[float]:
        model, rates = proxy("float32"), Rates()
        model.training_settings = Training(steps=STEPS, batch_size=2, lr=PEAK, **schedule)
        compute = Compute(accelerator="cpu", logger="none", progress=False)
        data = EncodedPool(Pool.open(digits.pool), np.arange(4), model.encoder)
        fit(model, data, TrainingJob(compute, tmp_path, "train", callbacks=[rates]), StageCost("train"))
        return rates.seen

    return of


def test_a_rise_over_its_share_of_the_steps_then_a_cosine_to_the_end(rates):
    rise = 3
    up = [PEAK * (k + 1) / rise for k in range(rise)]
    down = [PEAK * (1 + math.cos(math.pi * k / (STEPS - rise))) / 2 for k in range(STEPS - rise)]
    assert rates(warmup=0.3) == pytest.approx([*up, *down])


def test_constant_after_the_rise(rates):
    assert rates(warmup=0.2, schedule="constant") == pytest.approx([PEAK / 2, *[PEAK] * (STEPS - 1)])


def test_without_a_rise_the_first_step_is_at_the_peak(rates):
    down = [PEAK * (1 + math.cos(math.pi * k / (STEPS - 1))) / 2 for k in range(STEPS - 1)]
    assert rates(warmup=0.0) == pytest.approx([PEAK, *down])
