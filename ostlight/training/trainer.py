"""Lightning's Trainer from our settings, in one place."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from ostlight import interrupts
from ostlight.config.schema import Compute
from ostlight.errors import ConfigError
from ostlight.training.precision import on_cuda, precision_of, sum_in_fp32, warn_of_slow_bf16
from ostlight.training.trackio_logger import PROJECT, TrackioLogger


def make_trainer(
    compute: Compute,
    folder: Path,
    stage: str,
    callbacks: Sequence[Callback] = (),
    shard: bool = False,
    **arguments: Any,
) -> L.Trainer:
    """Returns a Trainer for one stage. Use it inside ``quiet_lightning()``.

    Args:
        folder: of the run; loggers write below it.
        stage: its name in the loggers.
        shard: whether ``strategy: fsdp`` shards this stage's model; if not, the stage runs under ``ddp``.
        arguments: further arguments of ``lightning.Trainer``.

    Raises:
        ConfigError: Lightning refuses the settings (no such accelerator, precision or strategy here).
    """
    if on_cuda(compute):
        sum_in_fp32()
    warn_of_slow_bf16(compute)
    try:
        return L.Trainer(
            accelerator=compute.accelerator,
            devices=compute.devices,
            num_nodes=compute.num_nodes,
            strategy=_strategy(compute, shard),
            precision=precision_of(compute),  # type: ignore[arg-type]
            logger=make_logger(compute.logger, folder, stage),
            callbacks=[_Signals(), *callbacks],
            enable_progress_bar=False,  # ours are shown by ostlight.progress
            enable_model_summary=False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            **arguments,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError([f"compute: Lightning refuses these settings: {reason}"]) from error


class _Signals(Callback):
    """Keeps Lightning's own handlers out: it would send to the other ranks in the middle of a step."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        interrupts.pass_on_to(getattr(trainer.strategy.launcher, "procs", []))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interrupts.listen_again()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interrupts.listen_again()


def wait_for_all() -> None:
    """Waits until every rank is here, so that all see the files that one wrote."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def first_device(compute: Compute) -> torch.device:
    """Returns the device of a stage that runs in one process alone."""
    return alone(compute).strategy.root_device


@contextmanager
def as_in_predict(compute: Compute, model: L.LightningModule) -> Iterator[None]:
    """Inside, in one process alone: the model on its device, weights and autocast as ``Trainer.predict`` would have
    them, with gradients."""
    trainer = alone(compute)
    trainer.precision_plugin.convert_module(model)
    model.to(trainer.strategy.root_device).eval()
    before = torch.get_default_dtype()
    with trainer.precision_plugin.forward_context(), torch.enable_grad():
        torch.set_default_dtype(torch.float32)  # bf16-true is for weights, not for sums over them
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def alone(compute: Compute) -> L.Trainer:
    """Returns the Trainer of a process that works on its one device alone."""
    alone = dataclasses.replace(compute, devices=1, num_nodes=1, strategy="auto", logger="none")
    with quiet_lightning():
        return make_trainer(alone, Path.cwd(), "")


def _strategy(compute: Compute, shard: bool) -> str | Strategy:
    if compute.strategy not in ("auto", "ddp", "fsdp"):
        return compute.strategy
    devices = compute.devices * compute.num_nodes
    if compute.strategy == "fsdp" and shard:
        # FSDP2: it shards single blocks, so that a step's micro-batches go through it one after the other.
        return ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False)
    # Gradients are averaged outside of DDP (ostlight.models.exchange): it need not look for parts that were not used.
    return "ddp" if devices > 1 else "auto"


def make_logger(name: str, folder: Path, stage: str) -> Logger | bool:
    """Returns Lightning's logger of that name for one stage, ``False`` for ``none``. Use it in ``quiet_lightning()``.

    Raises:
        ConfigError: its package is not installed.
    """
    if name == "none":
        return False
    if name == "csv":
        return CSVLogger(folder, name="logs", version=stage)
    if name == "tensorboard":
        try:
            return TensorBoardLogger(folder, name="logs", version=stage)
        except ModuleNotFoundError as error:
            raise ConfigError(
                ["compute.logger=tensorboard needs a package: pip install 'ostlight[tensorboard]'"]
            ) from error
    if name == "mlflow":
        return _mlflow(folder, stage)
    if name == "trackio":
        return _trackio(folder, stage)
    return _wandb(folder, stage)


def _mlflow(folder: Path, stage: str) -> MLFlowLogger:
    """Returns one MLflow run per stage, in the store that ``MLFLOW_TRACKING_URI`` names, or in the run folder."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    try:
        return MLFlowLogger(PROJECT, f"{folder.name}-{stage}", store, {"group": folder.name})
    except ModuleNotFoundError as error:
        raise ConfigError(["compute.logger=mlflow needs a package: pip install 'ostlight[mlflow]'"]) from error


def _trackio(folder: Path, stage: str) -> TrackioLogger:
    try:
        return TrackioLogger(folder, stage)
    except ModuleNotFoundError as error:
        raise ConfigError(["compute.logger=trackio needs a package: pip install 'ostlight[trackio]'"]) from error


def _wandb(folder: Path, stage: str) -> WandbLogger:
    """Returns one W&B run per stage, grouped by run folder; offline unless the environment says otherwise."""
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    if wandb.run is not None and wandb.run.project == PROJECT:
        wandb.finish()  # the stage before: Lightning would go on writing into its run
    return WandbLogger(name=f"{folder.name}-{stage}", save_dir=folder, project=PROJECT, group=folder.name)


NOT_APPLICABLE = (
    ".*does not have many workers.*",  # compute.workers is the user's choice
    ".*`IterableDataset` has `__len__` defined.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # its sampler starts at the checkpoint's step (training.checkpoints)
    ".*exists and is not empty.*",  # a resumed run logs into its folder again
    ".*Couldn't infer the batch indices fetched.*",  # rows know their own positions
    ".*in eval mode at the start of training.*",  # dropout stays off (ostlight.models.module)
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)
"""Lightning's advice that does not apply here, as warning messages."""

NOT_APPLICABLE_LOGGERS = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
"""And as loggers below ``lightning.pytorch``."""


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's advice that does not apply inside the block; filters and log levels are restored after it."""
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in NOT_APPLICABLE_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in NOT_APPLICABLE:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
