"""Measures what a set of records does to the proxy by training on it briefly."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.kept_trials import KeptTrials
from ostlight.training.loss_monitor import sample_losses
from ostlight.training.steps import EncodedPool
from ostlight.training.weights import set_trained_weights, trained_weights

log = logging.getLogger(__name__)

TRIAL_STEPS = 100
"""Optimiser steps of a trial by default, whatever the size of the set: trials are compared with each other."""


class TrialLoss(float):
    """Mean loss on the trusted samples, in nats; infinite where the training diverged.

    Attributes:
        by_group: mean loss of each group of trusted samples; empty where there is one group, or none is finite.
    """

    by_group: Mapping[str, float]

    def __new__(cls, mean: float, by_group: Mapping[str, float] | None = None) -> TrialLoss:
        self = super().__new__(cls, mean)
        self.by_group = by_group or {}
        return self


@dataclass
class Trials:
    """Trains a fresh copy of the proxy on records of the pool and measures the loss on trusted samples.

    Attributes:
        load_proxy: loads the proxy with the settings of its warm-up, of which all but the length apply. The proxy
            should not be warmed up: one that has learnt the pool learns little more from any part of it. Called once.
        trusted: samples the loss is measured on; at least one.
        compute: devices and token budget.
        seed: of the order of the samples.
        cost: every trial adds its own.
        group_tag: tag of the trusted samples that groups them; ``None`` for no groups.
        kept: results of earlier trials, which are not repeated; ``None`` keeps none.
    """

    load_proxy: Callable[[], MultimodalModel]
    pool: Pool
    trusted: Sequence[Sample]
    compute: Compute
    folder: Path
    seed: int
    cost: StageCost
    group_tag: str | None = None
    kept: KeptTrials | None = None

    def __post_init__(self) -> None:
        self._ran = 0

    @cached_property
    def _proxy(self) -> tuple[MultimodalModel, dict[str, Tensor], EncodedPool]:
        model = self.load_proxy()
        return model, trained_weights(model), EncodedPool(self.pool, [], model.encoder)

    @cached_property
    def _trusted_loss(self) -> _TrustedLoss:
        return _TrustedLoss(self.trusted, self.compute.tokens_per_batch, self.group_tag)

    def __call__(self, positions: np.ndarray, repeat: int = 0, steps: int | None = None) -> TrialLoss:
        """Returns the trusted samples' loss after the training.

        Args:
            positions: of the records.
            repeat: another number shuffles the samples differently, which shows the noise of a trial.
            steps: optimiser steps; ``TRIAL_STEPS`` by default.

        What it costs is added each time, also where the result was kept: the cost is that of a run without a break.

        Raises:
            DataError: no record to train on.
        """
        steps, seed = TRIAL_STEPS if steps is None else steps, _seed_of(self.seed, repeat)
        if self.kept is None:
            result = self._run(positions, seed, steps)
        else:
            key = self.kept.key(positions, seed, steps)
            found = self.kept.get(key)
            result = found or self._run(positions, seed, steps)
            if found is None:
                self.kept.put(key, result)
            else:
                self.cost.more["trials_kept"] = self.cost.more.get("trials_kept", 0) + 1
        self.cost.flops += result["flops"]
        self.cost.tokens += result["tokens"]
        self.cost.more["trials"] = self.cost.more.get("trials", 0) + 1
        return TrialLoss(result["loss"], result["by_group"])

    def _run(self, positions: np.ndarray, seed: int, steps: int) -> dict[str, Any]:
        """``loss``, ``by_group``, ``flops`` and ``tokens`` of a trial."""
        model, weights, data = self._proxy
        set_trained_weights(model, weights)
        model.training_settings = dataclasses.replace(model.training_settings, epochs=None, steps=steps)
        earlier, self._ran = self._ran, self._ran + 1
        trusted, cost = self._trusted_loss, StageCost("trial")
        trusted.loss, trusted.flops = TrialLoss(math.inf), 0.0
        compute = dataclasses.replace(self.compute, logger="none")
        job = TrainingJob(compute, self.folder, "trial", seed, callbacks=[trusted], quiet=earlier > 0)
        with suppress(DivergedError):  # the loss stays infinite
            fit(model, data.select(positions), job, cost)
        if "out_of_memory" in cost.more:
            self.cost.more["out_of_memory"] = cost.more["out_of_memory"]
            if earlier:
                log.warning(f"trial: {cost.more['out_of_memory']}")
        loss = trusted.loss
        return {
            "loss": float(loss),
            "by_group": dict(loss.by_group),
            "flops": cost.flops + trusted.flops,
            "tokens": cost.tokens,
        }


def _seed_of(seed: int, repeat: int) -> int:
    """The run's own for the first trial; for each other one that no run of a neighbouring seed has."""
    return seed if repeat == 0 else int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])


class _TrustedLoss(Callback):
    """Measures the loss on the trusted samples once training has ended, while the model is still on its device."""

    def __init__(self, trusted: Sequence[Sample], tokens_per_batch: int, group_tag: str | None) -> None:
        self._trusted, self._tokens_per_batch, self._group_tag = trusted, tokens_per_batch, group_tag
        self._batches: list[Batch] = []
        self.loss, self.flops = TrialLoss(math.inf), 0.0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel)
        if not self._batches:
            limit = pl_module.budget.most or self._tokens_per_batch
            trusted = pl_module.usable(self._trusted, "trusted samples")
            self._batches = pl_module.batches(trusted, min(limit, self._tokens_per_batch))
        with FlopCounter() as counter:
            losses = sample_losses(pl_module, self._batches).cpu().numpy()
        losses = trainer.strategy.broadcast(losses)  # all ranks use the first's
        self.flops = float(counter.total)
        mean = float(losses.mean())
        self.loss = TrialLoss(mean, self._by_group(losses)) if math.isfinite(mean) else TrialLoss(math.inf)

    def _by_group(self, losses: np.ndarray) -> dict[str, float]:
        if self._group_tag is None:
            return {}
        groups = np.array([sample.tags.get(self._group_tag, "") for batch in self._batches for sample in batch.samples])
        names = sorted(set(groups.tolist()))
        return {name: float(losses[groups == name].mean()) for name in names} if len(names) > 1 else {}
