"""Keeps the weights with the lowest loss on trusted samples, and stops a training that no longer improves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel
from ostlight.training.weights import set_trained_weights, trained_weights

CHECKS = 8
"""Times the loss is measured in the course of a training."""
CHECKS_S = "checks_s"
"""Seconds of the checks, in the cost log."""
PATIENCE = 2
"""Checks in a row without a new best after which the warm-up stops."""


@contextmanager
def counted(monitor: LossMonitor | None, cost: StageCost) -> Iterator[None]:
    """Adds what the checks took to the cost of the training inside, also where it fails."""
    try:
        yield
    finally:
        if monitor is not None:
            cost.flops += monitor.flops
            cost.more |= {CHECKS_S: round(monitor.seconds, 3), "checks_flops": monitor.flops}


def check_steps(last: int) -> list[int]:
    """The steps of a training of ``last`` steps at which the loss is measured, 0 among them."""
    return sorted({*range(0, last + 1, max(1, last // CHECKS)), last})


def _forward_flops(model: MultimodalModel, batches: list[Batch]) -> float:
    """Of a pass over all batches: counted on the first and scaled by tokens, padding included; two for every weight and
    token where the model is sharded. The pass that is counted is one more: under the counter attention may take
    another kernel, which would change a loss in its last digits."""
    tokens = [batch.padded_tokens for batch in batches]
    if not batches:
        return 0.0
    if model.sharded:
        return 2.0 * sum(p.numel() for p in model.parameters()) * sum(tokens)
    with torch.no_grad(), FlopCounter() as counter:
        model.losses(batches[0])
    return counter.total * sum(tokens) / tokens[0]


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
        flops: of the checks in this process, of all ranks: each measures the loss on all trusted samples.
        seconds: that they took.
    """

    def __init__(self, make_batches: Callable[[], list[Batch]], patience: int | None = PATIENCE) -> None:
        self._make_batches, self._patience = make_batches, patience
        self._batches: list[Batch] = []
        self._best_weights: dict[str, Tensor] = {}
        self.losses: list[tuple[int, float]] = []
        self.kept_step = 0
        self.flops = self.seconds = self._flops_of_check = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel)
        began = time.perf_counter()
        self._batches = self._make_batches()
        self._flops_of_check = trainer.world_size * _forward_flops(pl_module, self._batches)
        self.seconds += time.perf_counter() - began
        if not self.losses:
            self._check(pl_module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel)
        step, last = trainer.global_step, pl_module.total_steps
        if step in check_steps(last):
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
        began = time.perf_counter()
        loss = module.trainer.strategy.broadcast(mean_loss(module, self._batches))
        self.flops += self._flops_of_check
        self.seconds += time.perf_counter() - began
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
