"""Fine-tunes a model on some records of a pool, with Lightning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from ostlight.config.schema import Compute
from ostlight.errors import BadRecord, DataError, DivergedError
from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.cost_estimate import Preflight, measure
from ostlight.models.module import MultimodalModel
from ostlight.training.checkpoints import Checkpoints, From
from ostlight.training.steps import EncodedPool, StepDataset, plan_steps
from ostlight.training.trainer import make_trainer

log = logging.getLogger(__name__)


def fit(
    model: MultimodalModel,
    data: EncodedPool,
    compute: Compute,
    folder: Path,
    stage: str,
    seed: int,
    entry: StageCost,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    shard: bool = False,
    quiet: bool = False,
) -> dict[int, BadRecord]:
    """Trains ``model`` in place, by its ``training_settings``.

    Args:
        model: what to train.
        data: the samples, encoded for it; best first, where the settings order them by the ranking.
        compute: devices and token budget.
        folder, stage: where and under which name loggers write.
        seed: of the order of the samples.
        entry: the cost log's, filled in here.
        callbacks: Lightning's.
        checkpoints: takes them; where there is one already, training goes on from it.
        shard: whether ``compute.strategy=fsdp`` shards this model.
        quiet: log nothing, and do not time a step to estimate the duration.

    Returns:
        Records that could not be used, by position, with the reason; on every rank those of all.

    Raises:
        DataError: no sample to train on, or none that can be used.
        DivergedError: the loss became NaN or infinite.
        OstlightError: memory runs out on single samples too; until then micro-batches are halved on a single device.
    """
    if not len(data):
        raise DataError(f"{stage}: no sample to train on; widen the budget or look at quarantine.parquet")
    plan = plan_steps(len(data), model.training_settings, seed)
    model.total_steps = len(plan)
    start = 0 if checkpoints is None else checkpoints.start
    steps = StepDataset(data, plan, model.collator, compute.tokens_per_batch)
    cost = _Cost(entry, steps, start)
    last = [] if checkpoints is None else [checkpoints]
    trainer = make_trainer(compute, folder, stage, [*callbacks, _Finite(), cost, *last], shard=shard, max_epochs=1)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        cost.flops, line = _estimate(model, steps, stage)
    else:
        model.to(trainer.strategy.root_device)
        model.budget.on_halving = _log_halving(entry, stage, quiet)
        cost.flops, line = _preflight(model, steps, stage, timed=not quiet)
    if not quiet:
        log.info(line)
    steps.rank, steps.world_size, steps.tokens = trainer.global_rank, trainer.world_size, 0
    torch.manual_seed(seed)
    loader = DataLoader(steps, batch_size=None, sampler=From(start, len(plan)), num_workers=0)
    state = checkpoints.file if checkpoints is not None and start else None
    trainer.fit(model, loader, ckpt_path=state, weights_only=True)
    data.rejections.update(_from_all_ranks(data.rejections))
    if all(int(p) in data.rejections for p in data.positions):
        first = data.rejections[int(data.positions[0])]
        raise DataError(f"{stage}: none of the {len(data)} samples can be used; the first: {first}")
    entry.more["answers_cut"] = len(data.cut)
    if data.cut and not quiet:
        limit = model.encoder.max_length
        log.info(f"{stage}: {len(data.cut)} answers were cut by the length limit (max_length={limit})")
    cost.of_ranks(trainer.global_step, trainer.world_size)
    return data.rejections


def _log_halving(entry: StageCost, stage: str, quiet: bool) -> Callable[[str], None]:
    def halved(what: str) -> None:
        entry.more["out_of_memory"] = what
        if not quiet:
            log.warning(f"{stage}: {what}")

    return halved


class _Cost(Callback):
    """Keeps this rank's share in the cost log's entry while training goes on: a killed training was paid for too.

    Attributes:
        flops: of all steps, all ranks.
    """

    def __init__(self, entry: StageCost, steps: StepDataset, start: int) -> None:
        self.entry, self.steps, self.start, self.flops = entry, steps, start, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.of_ranks(trainer.global_step, 1)

    def of_ranks(self, step: int, ranks: int) -> None:
        """The cost up to a step, of so many ranks."""
        share = ranks / self.steps.world_size
        plan = self.steps.plan
        self.entry.tokens = self.steps.tokens * ranks
        self.entry.samples = round(share * sum(len(p) for p in plan[self.start : step]))
        self.entry.flops = share * self.flops * (step - self.start) / len(plan)


def _from_all_ranks(mine: dict[int, BadRecord]) -> dict[int, BadRecord]:
    if not torch.distributed.is_initialized():
        return mine
    gathered: list[dict[int, BadRecord]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, mine)
    return {position: error for one in gathered for position, error in one.items()}


def _estimate(model: MultimodalModel, steps: StepDataset, stage: str) -> tuple[float, str]:
    """FLOPs of a training whose model may not fit on one device: six for every weight and token."""
    step = steps[0]
    weights = sum(p.numel() for p in model.parameters())
    flops = 6.0 * weights * sum(sum(m.tokens) for m in step.micro_batches) * len(steps)
    return flops, f"{stage}: {len(steps):,} steps: {flops:.2g} FLOPs (estimated: six for every weight and token)"


def _preflight(model: MultimodalModel, steps: StepDataset, stage: str, timed: bool) -> tuple[float, str]:
    """FLOPs of the whole training, and the line that says what it will cost."""
    step = steps[0].to(model.device)
    if not step.micro_batches:
        return 0.0, f"{stage}: none of the first samples can be used"

    def measured(micro_batches: list[Batch]) -> Preflight:
        def once() -> None:
            model.zero_grad(set_to_none=True)
            for micro in micro_batches:
                model.losses(micro).mean().backward()
            model.zero_grad(set_to_none=True)

        return measure(once, sum(len(m) for m in micro_batches), len(steps), len(steps), timed)

    found = model.budget.run(step.micro_batches, measured)
    return found.flops, found.line(f"{stage}: {len(steps):,} steps")


class _Finite(Callback):
    """Stops at the first loss that is no number."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not bool(torch.isfinite(loss)):
            ids = [s.id for micro in batch.micro_batches for s in micro.samples]
            raise DivergedError(
                f"the loss is {float(loss)} at step {batch_idx + 1}, on samples {', '.join(ids[:8])}; "
                "lower the learning rate or look at these records"
            )
