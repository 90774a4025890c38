"""Keeps the weights with the lowest loss on trusted samples, and stops a training that no longer improves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel
from ostlight.training.weights import set_trained_weights, trained_weights

CHECKS = 8
"""Times the loss is measured in the course of a training."""
PATIENCE = 2
"""Checks in a row without a new best after which the warm-up stops."""


def mean_loss(model: MultimodalModel, batches: list[Batch]) -> float:
    """Returns the mean over samples of the per-sample losses, in nats, summed in float64."""
    with torch.no_grad():
        sums = [model.losses(b).double().sum() for b in batches]
    return float(torch.stack(sums).sum() / sum(len(b) for b in batches))


def sample_losses(model: MultimodalModel, batches: list[Batch]) -> Tensor:
    """Returns the per-sample losses, in nats, float64, in the order of the batches."""
    with torch.no_grad():
        return torch.cat([model.losses(b).double() for b in batches])


class LossMonitor(Callback):
    """Measures the loss on trusted samples during training and restores the best weights at the end.

    A checkpoint holds the losses and the best weights, so a resumed training ends as an undisturbed one does. All ranks
    follow the first rank's measurement: rounding may make theirs differ, and a rank that stops alone blocks the others.

    Args:
        make_batches: makes the trusted samples' batches, once the model is on its device.
        patience: checks in a row without a new best after which training stops; ``None`` never stops early.

    Attributes:
        losses: step and loss of every check; step 0 is before training.
        kept_step: step whose weights were kept; 0 means the training was undone.
    """

    def __init__(self, make_batches: Callable[[], list[Batch]], patience: int | None = PATIENCE) -> None:
        self._make_batches, self._patience = make_batches, patience
        self._batches: list[Batch] = []
        self._best_weights: dict[str, Tensor] = {}
        self.losses: list[tuple[int, float]] = []
        self.kept_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = self._make_batches()
        if not self.losses:
            self._check(pl_module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel)
        step, last = trainer.global_step, pl_module.total_steps
        if step % max(1, last // CHECKS) == 0 or step == last:
            self._check(pl_module, step)
            checks_since_best = sum(s > self.kept_step for s, _ in self.losses)
            if self._patience is not None and checks_since_best >= self._patience:
                trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel)
        set_trained_weights(pl_module, self._best_weights)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "kept_step": self.kept_step, "best": self._best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.kept_step, self._best_weights = (state_dict[k] for k in ("losses", "kept_step", "best"))

    def _check(self, module: L.LightningModule, step: int) -> None:
        assert isinstance(module, MultimodalModel)
        loss = module.trainer.strategy.broadcast(mean_loss(module, self._batches))
        if not self.losses or loss < min(earlier for _, earlier in self.losses):
            self.kept_step = step
            self._best_weights = trained_weights(module)
        self.losses.append((step, loss))
        for logger in module.loggers:
            logger.log_metrics({"trusted_loss": loss}, step)

    def summary(self, trusted: str, stage: str = "warm-up", model: str = "proxy") -> str:
        """Returns one line about what was kept; ``trusted`` names the samples the loss was measured on."""
        start = self.losses[0][1]
        if self.kept_step == 0:
            later = ", ".join(f"{loss:.3f}" for _, loss in self.losses[1:])
            return f"{stage} undone: loss on the {trusted} {start:.3f} before, {later} after; {model} unchanged"
        best = min(loss for _, loss in self.losses)
        return f"{stage} kept at step {self.kept_step}: loss on the {trusted} {start:.3f} before, {best:.3f} after"
