"""Logs the results of a stage through the logger that its training steps use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from pyarrow.csv import ConvertOptions, ParseOptions, read_csv

from ostlight.config.schema import Compute
from ostlight.ranks import is_first_rank
from ostlight.training.trackio_logger import TrackioLogger
from ostlight.training.trainer import make_logger, quiet_lightning

PARSE, CONVERT = ParseOptions(newlines_in_values=True), ConvertOptions(strings_can_be_null=True)
"""How W&B needs a table: one type a column, and ``None`` for a blank."""


@quiet_lightning()
def log_metrics(
    compute: Compute, folder: Path, stage: str, metrics: Mapping[str, float], after: LoggerOf | None = None
) -> None:
    """Logs the metrics of a stage, on the first rank.

    Args:
        after: the training that the metrics belong to; they are logged at its last step, in its log.
    """
    if not is_first_rank():
        return
    logger = (after and after.logger) or make_logger(compute.logger, folder, stage)
    if isinstance(logger, Logger):
        logger.log_metrics(dict(metrics), step=after.steps if after else 0)
        logger.finalize("success")


class LoggerOf(Callback):
    """Keeps the logger of a training, for metrics computed after it.

    Attributes:
        logger: ``None`` before the training has ended, and where it logs nothing.
        steps: of the optimiser.
    """

    def __init__(self) -> None:
        self.logger: Logger | None = None
        self.steps = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.logger, self.steps = trainer.logger, trainer.global_step


@quiet_lightning()
def log_comparison(compute: Compute, folder: Path, stage: str = "benchmark") -> None:
    """Logs the table (``table.csv``, ``table.md``) and the plots (``*.png``) of a benchmark's run folder.

    Weights & Biases gets a table and images, TensorBoard and Trackio the table as text and the images, MLflow the
    files; for ``csv`` and ``none`` the files themselves are the log.
    """
    logger = make_logger(compute.logger, folder, stage) if is_first_rank() else False
    plots = sorted(folder.glob("*.png"))
    if isinstance(logger, WandbLogger):
        table = read_csv(folder / "table.csv", parse_options=PARSE, convert_options=CONVERT)
        columns = [column.to_pylist() for column in table.columns]
        logger.log_table("table", columns=table.column_names, data=[list(row) for row in zip(*columns, strict=True)])
        for plot in plots:
            logger.log_image(f"plot/{plot.stem}", [str(plot)])
    elif isinstance(logger, MLFlowLogger):
        for file in (folder / "table.csv", folder / "table.md", *plots):
            logger.experiment.log_artifact(logger.run_id, str(file))
        logger.finalize("success")
    elif isinstance(logger, TrackioLogger):
        logger.log_text_and_images({"table": (folder / "table.md").read_text()}, {f"plot/{p.stem}": p for p in plots})
        logger.finalize("success")
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("table", (folder / "table.md").read_text())
        for plot in plots:
            pixels = np.asarray(Image.open(plot).convert("RGB"))
            logger.experiment.add_image(f"plot/{plot.stem}", pixels, dataformats="HWC")
        logger.finalize("success")
