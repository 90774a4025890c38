"""Checkpoints of a training: one that is killed resumes, and ends as it would have ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ostlight.models.module import MultimodalModel


class Checkpoints(Callback):
    """Saves the state of a training every few minutes: weights, optimiser, schedule and the other callbacks' state.

    The file appears by rename, so it is complete or missing. No checkpoint is saved at the last step, which the trained
    model follows. It must be the last callback, so that the others have seen the step too.

    Args:
        file: the checkpoint, the newest only.
        minutes: between two; 0 saves after every step.

    Attributes:
        start: step of the checkpoint that was found; 0 where there is none.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.minutes = file, minutes
        self.start = 0
        if file.exists():
            self.start = int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel)
        due = trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.minutes)
        if not due or trainer.should_stop or trainer.global_step >= pl_module.total_steps:
            return
        partial = self.file.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.file)
        self._saved = time.monotonic()
