"""What a stage has to say beyond its steps, through the logger its steps go through."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from ostlight.config.schema import Compute
from ostlight.run.folder import is_first_rank
from ostlight.run.trainer import make_logger


def log_metrics(compute: Compute, folder: Path, stage: str, metrics: Mapping[str, float]) -> None:
    """Logs the figures a stage came to, on the first rank."""
    logger = make_logger(compute.logger, folder, stage) if is_first_rank() else False
    if isinstance(logger, bool):
        return
    logger.log_metrics(dict(metrics), step=0)
    logger.finalize("success")


def log_comparison(compute: Compute, folder: Path, stage: str = "benchmark") -> None:
    """Logs a comparison's table (``table.csv``) and pictures (``*.png``) as its run folder holds them.

    Weights & Biases gets a table and images, TensorBoard the table as text and the images; for ``csv`` and ``none`` the
    files themselves are the log.
    """
    logger = make_logger(compute.logger, folder, stage) if is_first_rank() else False
    with (folder / "table.csv").open(newline="") as file:
        columns, *rows = list(csv.reader(file))
    pictures = sorted(folder.glob("*.png"))
    if isinstance(logger, WandbLogger):
        logger.log_table("table", columns=columns, data=[[_number(value) for value in row] for row in rows])
        for picture in pictures:
            logger.log_image(f"picture/{picture.stem}", [str(picture)])
    elif isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *rows]
        logger.experiment.add_text("table", "\n".join(f"| {' | '.join(line)} |" for line in lines))
        for picture in pictures:
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            logger.experiment.add_image(f"picture/{picture.stem}", pixels, dataformats="HWC")
        logger.finalize("success")


def _number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value
