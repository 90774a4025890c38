"""What a set of records does to the proxy, found out by training on it briefly."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ostlight.config.schema import Compute
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import DivergedError
from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel
from ostlight.training.fit import fit
from ostlight.training.steps import EncodedPool
from ostlight.training.watch import mean_loss
from ostlight.training.weights import put_back, trained_weights

log = logging.getLogger(__name__)

TRIAL_STEPS = 100
"""Optimiser steps of every trial, whatever the size of the set: trials are compared with each other."""


class Trials:
    """Trains a fresh copy of the proxy on records of the pool and reads trusted samples; every call costs one training.

    Args:
        load: the proxy, with the settings of its warm-up; all but their length are kept. Best not warmed up yet: what
            has learnt the pool learns little more from any part of it. Called once; a trial begins with its weights.
        pool: where the records are.
        trusted: at least one.
        compute, folder: as for ``fit``.
        seed: of the order of the samples.
        entry: the cost log's; what trials cost is added to it.
    """

    def __init__(
        self,
        load: Callable[[], MultimodalModel],
        pool: Pool,
        trusted: Sequence[Sample],
        compute: Compute,
        folder: Path,
        seed: int,
        entry: StageCost,
    ) -> None:
        self._load, self._pool = load, pool
        self._compute = dataclasses.replace(compute, progress=False, logger="none")
        self._folder, self._seed, self._entry = folder, seed, entry
        self._reader = _Reader(trusted, compute.tokens_per_batch)

    @cached_property
    def _proxy(self) -> tuple[MultimodalModel, dict[str, Tensor], EncodedPool]:
        model = self._load()
        model.training_settings = dataclasses.replace(model.training_settings, epochs=None, steps=TRIAL_STEPS)
        return model, trained_weights(model), EncodedPool(self._pool, [], model.encoder)

    def __call__(self, positions: np.ndarray, repeat: int = 0) -> float:
        """The trusted samples' mean loss in nats after the training; infinite where the training diverged.

        Args:
            positions: of the records.
            repeat: another number takes the samples in another order, which tells the noise of a trial.

        Raises:
            DataError: no record to train on.
        """
        model, weights, data = self._proxy
        put_back(model, weights)
        tried = self._entry.more.get("trials", 0)
        reader, cost = self._reader, StageCost("trial")
        reader.loss, reader.flops = math.inf, 0.0
        with suppress(DivergedError):  # the loss stays infinite
            seed, folder = self._seed + repeat, self._folder
            fit(model, data.view(positions), self._compute, folder, "trial", seed, cost, [reader], quiet=tried > 0)
        if "out_of_memory" in cost.more:
            self._entry.more["out_of_memory"] = told = cost.more["out_of_memory"]
            if tried:
                log.warning(f"trial: {told}")
        self._entry.flops += cost.flops + reader.flops
        self._entry.tokens += cost.tokens
        self._entry.more["trials"] = tried + 1
        return reader.loss


class _Reader(Callback):
    """Reads the trusted samples once training has ended, while the model is still on its device."""

    def __init__(self, trusted: Sequence[Sample], tokens_per_batch: int) -> None:
        self._trusted, self._tokens_per_batch = trusted, tokens_per_batch
        self._batches: list[Batch] | None = None
        self.loss, self.flops = math.inf, 0.0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel), "trials train the models of this project"
        if self._batches is None:
            most = pl_module.budget.most or self._tokens_per_batch
            self._batches = pl_module.batches(self._trusted, min(most, self._tokens_per_batch))
        with FlopCounter() as counter:
            loss = trainer.strategy.broadcast(mean_loss(pl_module, self._batches))  # ranks choose alike
        self.flops = float(counter.total)
        self.loss = loss if math.isfinite(loss) else math.inf
