"""Fine-tunes a model on some records of a pool, with Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from ostlight.config.schema import Compute
from ostlight.errors import BadRecord, DataError, DivergedError
from ostlight.model.module import MultimodalModel
from ostlight.run.ledger import Entry
from ostlight.run.preflight import measure
from ostlight.run.trainer import make_trainer
from ostlight.training.steps import EncodedPool, StepDataset, plan_steps


def fit(
    model: MultimodalModel,
    data: EncodedPool,
    compute: Compute,
    folder: Path,
    stage: str,
    seed: int,
    entry: Entry,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[int, BadRecord]:
    """Trains ``model`` in place, by its ``training_settings``.

    Args:
        model: what to train.
        data: the samples, encoded for it.
        compute: devices and token budget.
        folder, stage: where and under which name loggers write.
        seed: of the order of the samples.
        entry: the ledger's, filled in here.
        say: prints the preflight line; ``None`` leaves it out.
        callbacks: Lightning's.

    Returns:
        Records that could not be used, by position, with the reason.

    Raises:
        DataError: no sample to train on.
        DivergedError: the loss became NaN or infinite.
    """
    if not len(data):
        raise DataError(f"{stage}: no sample to train on; widen the budget or look at quarantine.parquet")
    plan = plan_steps(len(data), model.training_settings, seed)
    model.total_steps = len(plan)
    trainer = make_trainer(compute, folder, stage, [*callbacks, _Finite()], max_epochs=1)
    steps = StepDataset(data, plan, model.collator, compute.tokens_per_batch)
    entry.flops, line = _preflight(model, steps, stage)
    if say is not None:
        say(line)
    steps.rank, steps.world_size, steps.tokens = trainer.global_rank, trainer.world_size, 0
    torch.manual_seed(seed)
    loader = DataLoader(steps, batch_size=None, num_workers=0)
    trainer.fit(model, loader)
    entry.more["answers_cut"] = len(data.cut)
    if data.cut and say is not None:
        limit = model.encoder.max_length
        say(f"{stage}: {len(data.cut)} answers were cut by the length limit (max_length={limit})")
    entry.tokens = steps.tokens * trainer.world_size
    entry.samples = int(sum(len(p) for p in plan[: trainer.global_step]))
    entry.flops *= trainer.global_step / len(plan)
    return data.refusals


def _preflight(model: MultimodalModel, steps: StepDataset, stage: str) -> tuple[float, str]:
    """FLOPs of the whole training, and the line that says what it will cost."""
    step = steps[0].to(model.device)
    if not step.micro_batches:
        return 0.0, f"{stage}: none of the first samples can be used"

    def once() -> None:
        for micro in step.micro_batches:
            model.losses(micro).mean().backward()
        model.zero_grad(set_to_none=True)

    seen = sum(len(m) for m in step.micro_batches)
    found = measure(once, seen, len(steps), len(steps))
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
