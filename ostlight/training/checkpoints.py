"""Checkpoints of a training: one that is killed resumes, and ends as it would have ended."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ostlight import interrupts
from ostlight.data.atomic import SHARED_TOKEN, atomic_write_text, temporary_path
from ostlight.errors import read_if_whole
from ostlight.models.exchange import agreed
from ostlight.models.module import MultimodalModel
from ostlight.ranks import is_first_rank


class Checkpoints(Callback):
    """Saves the state of a training every few minutes, and when a signal ends it: weights, optimiser, schedule and the
    other callbacks' state.

    The file appears by rename, so it is complete or missing. No checkpoint is saved at the last step, which the trained
    model follows. It must be the last callback, so that the others have seen the step too.

    Args:
        file: the checkpoint, the newest only.
        minutes: between two; 0 saves after every step.

    Attributes:
        start: step of the checkpoint that was found; 0 where there is none.
        most_tokens: that a micro-batch may have, if memory ran out on more before; ``None`` if not.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.minutes = file, minutes
        self.start = 0
        if file.exists():
            self.start = read_if_whole(file, lambda: _step_of(file), "the training starts over") or 0
        self._limit = limit = file.with_suffix(".tokens")
        self.most_tokens: int | None = None
        if limit.exists():
            self.most_tokens = read_if_whole(limit, lambda: int(limit.read_text()), "the limit is found again")
        self._saved = time.monotonic()

    def note_limit(self, tokens: int) -> None:
        """Keeps what a micro-batch may have for the training that resumes this one."""
        atomic_write_text(self._limit, f"{tokens}\n")

    def remove(self) -> None:
        """Removes what was kept for a training that resumes this one: the trained model is saved.

        Raises:
            Interrupted: by a signal since the last step.
        """
        if is_first_rank():
            self.file.unlink(missing_ok=True)
            self._limit.unlink(missing_ok=True)
        interrupts.release()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interrupts.hold()  # until the trained model is saved too (``remove``)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel)
        due, signal = self._due(trainer, pl_module)
        if not (due or signal) or trainer.should_stop or trainer.global_step >= pl_module.total_steps:
            return
        partial = temporary_path(self.file, SHARED_TOKEN)
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.file)
        self._saved = time.monotonic()
        if signal:
            interrupts.raise_interrupted(signal)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        interrupts.release()

    def _due(self, trainer: L.Trainer, model: MultimodalModel) -> tuple[bool, int]:
        """Whether the first rank's time is up, and the number of a signal that any rank has received, else 0."""
        due = trainer.is_global_zero and time.monotonic() - self._saved >= 60 * self.minutes
        own = [int(due), interrupts.received() or 0]
        due_anywhere, signal = agreed(own, model.device) if trainer.world_size > 1 else own
        return bool(due_anywhere), signal


def _step_of(file: Path) -> int:
    """The step of a checkpoint.

    Raises:
        ValueError: a part of the file is not what was written.
    """
    with zipfile.ZipFile(file) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"{broken} is not what was written")
    return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])
