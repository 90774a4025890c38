"""Fine-tunes a model on some records of a pool, with Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from ostlight.config.schema import Compute
from ostlight.errors import FIRST_RECORDS, BadRecord, DataError, DivergedError
from ostlight.influence.shared_passes import of_all_ranks
from ostlight.models.batch import Batch, TrainingStep
from ostlight.models.cost import StageCost
from ostlight.models.cost_estimate import estimate_cost
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import Waited
from ostlight.models.vision.cache import take_flops
from ostlight.progress import Phase, phase
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.precision import precision_of
from ostlight.training.steps import EncodedPool, StepDataset, StepLoader, plan_steps
from ostlight.training.trainer import make_trainer, quiet_lightning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """Where and how a training runs.

    Attributes:
        compute: devices and token budget.
        folder: of the run; loggers write below it.
        stage: name of the training, for loggers and messages.
        seed: of the order of the samples.
        checkpoints: saves checkpoints; training resumes from the one it found.
        shard: whether ``compute.strategy=fsdp`` shards this model.
        quiet: logs nothing, and does not time a step to estimate the duration.
    """

    compute: Compute
    folder: Path
    stage: str
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    checkpoints: Checkpoints | None = None
    shard: bool = False
    quiet: bool = False


@quiet_lightning()
def fit(model: MultimodalModel, data: EncodedPool, job: TrainingJob, cost: StageCost) -> dict[int, BadRecord]:
    """Trains ``model`` in place, by its ``training_settings``.

    Args:
        data: its training samples; best first, where the settings order them by utility.
        cost: filled in here.

    Returns:
        Records of all ranks that could not be used, by position, with the reason.

    Raises:
        DataError: no sample to train on, or none (or none of the first) that can be used.
        DivergedError: the loss became NaN or infinite.
        OstlightError: memory runs out on single samples too, or at all where the model is sharded; else micro-batches
            are halved, on all ranks.
    """
    if not len(data):
        raise DataError(f"{job.stage}: no sample to train on; widen the budget or look at quarantine.parquet")
    data.select(data.positions[:FIRST_RECORDS]).usable(job.stage)
    start = job.checkpoints.start if job.checkpoints else 0
    plan = plan_steps(len(data), model.training_settings, job.seed)
    model.total_steps = len(plan)
    model.budget.on_halving = partial(_note_halving, model, cost, job)
    if job.checkpoints and job.checkpoints.most_tokens:
        model.budget.most = job.checkpoints.most_tokens
    steps = StepDataset(data, plan, model.collator, job.compute.tokens_per_batch)
    tracker = _CostTracker(cost, steps, start)
    callbacks = [
        *job.callbacks,
        _StopOnNonFiniteLoss(),
        _KeepsUnusable(data),
        tracker,
        _Progress(job.stage, start, len(plan)),
        *([job.checkpoints] if job.checkpoints else []),
    ]
    trainer = make_trainer(job.compute, job.folder, job.stage, callbacks, shard=job.shard, max_epochs=1)
    tracker.flops_per_token = _flops_per_token(model, steps, job, trainer)
    if not job.quiet:
        _warn_of_half_precision(model, job)
    steps.rank, steps.world_size = trainer.global_rank, trainer.world_size
    torch.manual_seed(job.seed)
    loader = StepLoader(steps, start, job.compute)
    waited = Waited(loader, "" if job.quiet else job.stage, loader.workers)
    checkpoint = job.checkpoints.file if job.checkpoints and start else None
    trainer.fit(model, waited, ckpt_path=checkpoint, weights_only=True)
    cost.more["waited_for_data"] = round(waited.share, 3)
    for rejections in of_all_ranks(data.rejections):
        data.rejections.update(rejections)
    if all(int(p) in data.rejections for p in data.positions):
        first = data.rejections[int(data.positions[0])]
        raise DataError(f"{job.stage}: none of the {len(data)} samples can be used; the first: {first}")
    cost.more["answers_cut"] = len(data.cut)
    if data.cut and not job.quiet:
        limit = model.encoder.max_length
        log.info(f"{job.stage}: {len(data.cut)} answers were cut by the length limit (max_length={limit})")
    tracker.update(trainer.global_step, trainer.world_size)
    cost.flops += sum(of_all_ranks(take_flops()))
    return data.rejections


def _warn_of_half_precision(model: MultimodalModel, job: TrainingJob) -> None:
    half = precision_of(job.compute) == "bf16-true" or any(p.dtype.itemsize < 4 for p in model.trained.values())
    if half:
        log.warning(
            f"{job.stage}: the trained weights are in half precision, where most steps of AdamW are smaller than what "
            "a weight is rounded to, and are lost; set dtype=float32 (proxy.dtype, target.dtype) and "
            "compute.precision=bf16-mixed, or train LoRA adapters in float32"
        )


def _flops_per_token(model: MultimodalModel, steps: StepDataset, job: TrainingJob, trainer: L.Trainer) -> float:
    """Returns the FLOPs of training on a token, padding included; logs those of the whole training, and moves a model
    that is not sharded to its device."""
    usable = (step for step in (steps[k] for k in range(len(steps))) if step.micro_batches)
    first = next(usable, None)
    if first is None:
        return 0.0  # the training finds none either, and says so
    if isinstance(trainer.strategy, ModelParallelStrategy):
        flops, line = _estimate(model, first, len(steps), job.stage)
    else:
        model.to(trainer.strategy.root_device)
        flops, line = _preflight(model, first.to(model.device), len(steps), job)
    if not job.quiet:
        log.info(line)
    return flops / (len(steps) * first.padded_tokens)


def _note_halving(model: MultimodalModel, cost: StageCost, job: TrainingJob, message: str) -> None:
    cost.more["out_of_memory"] = message
    if job.checkpoints and model.budget.most:
        job.checkpoints.note_limit(model.budget.most)
    if not job.quiet:
        log.warning(f"{job.stage}: {message}")


def _estimate(model: MultimodalModel, first: TrainingStep, steps: int, stage: str) -> tuple[float, str]:
    """FLOPs of a training whose model may not fit on one device: six for every weight and token."""
    flops = 6.0 * sum(p.numel() for p in model.parameters()) * first.padded_tokens * steps
    return flops, f"{stage}: {steps:,} steps: {flops:.2g} FLOPs (estimated: six for every weight and token)"


def _preflight(model: MultimodalModel, first: TrainingStep, steps: int, job: TrainingJob) -> tuple[float, str]:
    """FLOPs of a training, measured on its first step."""

    def measured(micro_batches: list[Batch]) -> tuple[float, str]:
        def backward() -> None:
            model.zero_grad(set_to_none=True)
            for micro in micro_batches:
                model.losses(micro).mean().backward()
            model.zero_grad(set_to_none=True)

        samples, name = sum(map(len, micro_batches)), f"{job.stage}: {steps:,} steps"
        return estimate_cost(name, backward, samples, steps, None if job.quiet else steps)

    return model.budget.run(first.micro_batches, measured)


class _CostTracker(Callback):
    """Updates the cost after every step, so that a training that fails has its cost too.

    Attributes:
        flops_per_token: of training on a token, padding included.
    """

    def __init__(self, cost: StageCost, steps: StepDataset, start: int) -> None:
        self.cost, self.steps, self.start, self.flops_per_token = cost, steps, start, 0.0
        self._tokens = self._padded_tokens = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TrainingStep, batch_idx: int
    ) -> None:
        self._tokens += batch.tokens
        self._padded_tokens += batch.padded_tokens
        self.update(trainer.global_step, 1)

    def update(self, step: int, ranks: int) -> None:
        """Sets the cost up to a step, of so many ranks."""
        share = ranks / self.steps.world_size
        self.cost.tokens = self._tokens * ranks
        self.cost.samples = round(share * sum(len(p) for p in self.steps.plan[self.start : step]))
        self.cost.flops = self.flops_per_token * self._padded_tokens * ranks


class _Progress(Callback):
    """The training as a phase, step by step."""

    def __init__(self, stage: str, start: int, steps: int) -> None:
        self._open, self._phase = ExitStack(), Phase(stage)
        self._settings = (stage, steps, "steps", start)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._phase = self._open.enter_context(phase(*self._settings))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self._phase.advance()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._open.close()


class _KeepsUnusable(Callback):
    """Puts the records that could not be used, and those whose answers were cut, into the checkpoint: a training that
    resumes does not read them again."""

    def __init__(self, data: EncodedPool) -> None:
        self._data = data

    def state_dict(self) -> dict[str, Any]:
        rejections = {p: error for found in of_all_ranks(self._data.rejections) for p, error in found.items()}
        return {
            "rejections": [[p, error.reason, error.detail, error.field] for p, error in sorted(rejections.items())],
            "cut": sorted({p for found in of_all_ranks(set(self._data.cut)) for p in found}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for position, *error in state_dict["rejections"]:
            self._data.rejections.setdefault(position, BadRecord(*error))
        self._data.cut.update(state_dict["cut"])


class _StopOnNonFiniteLoss(Callback):
    """Stops at the first loss that is NaN or infinite, and names the samples."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TrainingStep, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not bool(torch.isfinite(loss)):
            ids = [s.id for micro in batch.micro_batches for s in micro.samples]
            raise DivergedError(
                f"the loss is {float(loss)} at step {batch_idx + 1}, on samples {', '.join(ids[:8])}; "
                "lower the learning rate or look at these records"
            )
