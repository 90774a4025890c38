"""The monitor that keeps the best weights: all ranks follow one measurement."""

from __future__ import annotations

import numpy as np
from lightning.pytorch.strategies import SingleDeviceStrategy

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.training import loss_monitor
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor
from ostlight.training.steps import EncodedPool


def test_every_rank_follows_the_first_ranks_losses(proxy, digits, tmp_path, monkeypatch):
    first_ranks = {1.1: 1.1, 1.2: 0.9, 1.3: 0.8, 1.4: 0.9, 1.5: 0.9}
    own = iter(first_ranks)
    monkeypatch.setattr(loss_monitor, "mean_loss", lambda *_: next(own))
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", lambda _, loss, src=0: first_ranks.get(loss, loss))
    model, monitor = proxy("float32"), LossMonitor(list, patience=2)
    model.training_settings = Training(steps=6, batch_size=4, lr=1e-3)
    compute = Compute(accelerator="cpu", logger="none", progress=False)
    data = EncodedPool(Pool.open(digits.pool), np.arange(8), model.encoder)
    entry = StageCost("train")
    fit(model, data, TrainingJob(compute, tmp_path, "train", callbacks=[monitor]), entry)
    assert monitor.losses == list(enumerate(first_ranks.values()))
    assert monitor.kept_step == 2
    assert entry.samples == 4 * 4, "stopped two checks after the best of the first rank's"
