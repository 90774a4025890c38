"""Training that helps is kept; training that ruins the model is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel
from ostlight.training.weights import put_back, trained_weights

CHECKS = 8
"""Times the loss is looked at in the course of a training."""
PATIENCE = 2
"""Checks in a row without a new best after which the warm-up stops."""


def mean_loss(model: MultimodalModel, batches: list[Batch]) -> float:
    """``L_V``: mean over samples of the per-sample losses, in nats, summed in float64."""
    with torch.no_grad():
        sums = [model.losses(b).double().sum() for b in batches]
    return float(torch.stack(sums).sum() / sum(len(b) for b in batches))


class LossMonitor(Callback):
    """Reads the loss on trusted samples while training goes on, and puts the best weights back at the end.

    A checkpoint holds what it has seen, the best weights too, so a resumed training keeps what the whole one would.
    All ranks go by the first one's reading: rounding may tell theirs apart, and who stops alone is waited for.

    Args:
        batches: makes the trusted samples' batches, once the model is on its device.
        patience: checks in a row without a new best after which training stops; ``None`` goes on to the end.

    Attributes:
        losses: step and loss of every check; step 0 is before training.
        kept_step: step whose weights were kept; 0 means the training was undone.
    """

    def __init__(self, batches: Callable[[], list[Batch]], patience: int | None = PATIENCE) -> None:
        self._make, self._patience = batches, patience
        self._batches: list[Batch] = []
        self._best: dict[str, Tensor] = {}
        self.losses: list[tuple[int, float]] = []
        self.kept_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = self._make()
        if not self.losses:
            self._check(pl_module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel), "the watch knows the models of this project"
        total = pl_module.total_steps
        step = trainer.global_step
        if step % max(1, total // CHECKS) == 0 or step == total:
            self._check(pl_module, step)
            since = [s for s, _ in self.losses if s > self.kept_step]
            if self._patience is not None and len(since) >= self._patience:
                trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel), "the watch knows the models of this project"
        put_back(pl_module, self._best)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "kept_step": self.kept_step, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.kept_step, self._best = (state_dict[k] for k in ("losses", "kept_step", "best"))

    def _check(self, module: L.LightningModule, step: int) -> None:
        assert isinstance(module, MultimodalModel), "the watch knows the models of this project"
        loss = module.trainer.strategy.broadcast(mean_loss(module, self._batches))
        if not self.losses or loss < min(known for _, known in self.losses):
            self.kept_step = step
            self._best = trained_weights(module)
        self.losses.append((step, loss))
        for logger in module.loggers:
            logger.log_metrics({"watched_loss": loss}, step)

    def line(self, read_on: str, stage: str = "warm-up", what: str = "proxy") -> str:
        """What happened, for the user. ``read_on`` names the samples the loss was read on."""
        start = self.losses[0][1]
        best = min(loss for _, loss in self.losses)
        if self.kept_step == 0:
            seen = ", ".join(f"{loss:.3f}" for _, loss in self.losses[1:])
            return (
                f"{stage} undone: the loss on the {read_on} was {start:.3f} before and {seen} after; {what} unchanged"
            )
        return f"{stage} kept at step {self.kept_step}: the loss on the {read_on} fell from {start:.3f} to {best:.3f}"
