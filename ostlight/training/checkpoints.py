"""A training that is killed goes on where it stood, and ends as it would have ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Sampler

from ostlight.model.module import MultimodalModel
from ostlight.run.ledger import Entry


class Checkpoints(Callback):
    """Saves the state of a training every few minutes: weights, optimiser, schedule, what the other callbacks know.

    The file appears by rename, so it is whole or it is not there. No checkpoint is taken at the last step: what comes
    after it is the trained model. It must be the last callback, so that the others have seen the step too.

    Args:
        file: the checkpoint, the newest only.
        minutes: between two; 0 saves after every step.

    Attributes:
        start: steps that an earlier sitting has done.
        sitting: name of this one in the ledger.
        spent: tokens and samples of this sitting so far; ``fit`` knows them.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.minutes = file, minutes
        self.sitting = datetime.now(UTC).isoformat()
        self.start = 0
        self.spent: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._began = self._saved = time.monotonic()

    def earlier(self) -> Entry | None:
        """What the sitting that left a checkpoint had cost by then; sets ``start``. ``None`` where there is none."""
        if not self.file.exists():
            return None
        known = torch.load(self.file, map_location="cpu", mmap=True, weights_only=True)
        self.start = int(known["global_step"])
        told = known["callbacks"][self.state_key]
        more = {"sitting": told["sitting"], "failed": "killed"}
        return Entry("train", wall_s=told["wall_s"], tokens=told["tokens"], samples=told["samples"], more=more)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel), "the models of this project know how many steps there are"
        due = trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.minutes)
        if not due or trainer.should_stop or trainer.global_step >= pl_module.total_steps:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.file)
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        tokens, samples = self.spent()
        wall_s = time.monotonic() - self._began
        return {"sitting": self.sitting, "wall_s": wall_s, "tokens": tokens, "samples": samples}

    def remove(self) -> None:
        """Once the trained model is saved."""
        self.file.unlink(missing_ok=True)


class From(Sampler[int]):
    """The places from ``start`` on; its length is that of the whole, by which Lightning counts."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total
