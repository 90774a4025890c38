"""The model inside Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from ostlight.config.schema import Compute, Lora, Target, Training
from ostlight.data.pool import Pool
from ostlight.digitmath.model import checkpoint
from ostlight.models.cost import StageCost
from ostlight.models.module import MultimodalModel
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool


class Modes(L.Callback):
    """Whether any part of the model is in train mode, at every step."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.seen.append(any(module.training for module in pl_module.model.modules()))


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_it_stays_in_eval_mode_while_it_trains(lora: Lora | None, digits, tmp_path: Path) -> None:
    training, modes = Training(steps=2, batch_size=4), Modes()
    model = MultimodalModel.load(Target(path=str(checkpoint("target")), lora=lora), "target", training)
    compute = Compute(accelerator="cpu", logger="none", progress=False)
    data = EncodedPool(Pool.open(digits.pool), range(8), model.encoder)
    fit(model, data, TrainingJob(compute, tmp_path, "train", callbacks=[modes]), StageCost("train"))
    assert modes.seen == [False, False]
