"""From a subset to a trained target."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.config.schema import Config
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine
from ostlight.data.sample import Sample
from ostlight.errors import DataError
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import open_pool, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.ranks import is_first_rank
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor
from ostlight.training.steps import EncodedPool
from ostlight.training.weights import set_trained_weights, trained_weights

log = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Trains the target on the run's selection, best samples of the pool only, and saves it as ``target/``.

    With a development set the best weights by its loss are kept, and training stops early where they get no better. A
    training that was killed goes on from its last checkpoint.

    Returns:
        The folder; ``from_pretrained`` and inference servers load it. Adapters are merged.

    Raises:
        DataError: the run has no selection yet, or an empty one.
        RunChangedError: the folder holds a target trained on other samples or with other settings.
    """
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    kept = read_kept(folder)
    pool = open_pool(config.pool, "pool")
    dev = open_pool(config.dev, "dev") if config.dev.path is not None else None
    folder.claim("target", target_fingerprints(config, pool, kept, dev))
    folder.write_config("target")
    if (folder.target / "config.json").exists():
        log.info(f"target: already trained in {folder.target}")
        return folder.target
    log.info(f"train: on the {len(kept):,} records that {folder.selection} keeps")
    model = MultimodalModel.load(config.target, "target", config.target.training)
    trusted = [s for _, s in dev.read(range(len(dev))) if isinstance(s, Sample)] if dev is not None else []
    batches = lambda: model.batches(trusted, config.compute.tokens_per_batch)  # noqa: E731
    watch = LossMonitor(batches, config.target.patience) if trusted else None
    checkpoints = Checkpoints(folder.path / "checkpoint.ckpt", config.target.checkpoint_minutes)
    if checkpoints.start:
        log.info(f"train: goes on from step {checkpoints.start} ({checkpoints.file})")
    data = EncodedPool(pool, kept, model.encoder)
    with folder.cost_log.stage("train", config.selector.shown) as entry:
        entry.resumed = checkpoints.start > 0
        callbacks = [watch] if watch else []
        job = TrainingJob(config.compute, folder.path, "train", config.seed, callbacks, checkpoints, shard=True)
        rejections = fit(model, data, job, entry)
        entry.more["rejected"] = len(rejections)
        if watch is not None:
            entry.more["kept_step"] = watch.kept_step
    if watch is not None:
        log.info(watch.summary("development set", "training", "target"))
    _rejected(folder, pool, rejections, len(kept))
    _save(model, config, folder.target)
    if is_first_rank():
        checkpoints.remove()
    log.info(f"target: {folder.target}")
    return folder.target


def target_fingerprints(config: Config, pool: Pool, kept: np.ndarray, dev: Pool | None) -> dict[str, str]:
    """Fingerprint of everything the target's weights depend on."""
    settings = dataclasses.asdict(config.target) | {"path": None, "checkpoint_minutes": None}
    return {
        "pool": pool.fingerprint()[:16],
        "selection": fingerprint.of_values(kept.tolist()),
        "development set": dev.fingerprint()[:16] if dev is not None else "none",
        "target.path": fingerprint.of_model(config.target.path, "target"),
        "target": fingerprint.of_values(settings),
        "compute.precision": config.compute.precision,
        "seed": str(config.seed),
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
    }


def read_kept(folder: RunFolder) -> np.ndarray:
    """Positions of the records the run kept, highest score first.

    Raises:
        DataError: nothing was selected yet.
    """
    if not folder.selection.exists():
        raise DataError(f"{folder.selection} is not there; run `ostlight select` with this configuration first")
    table = pq.read_table(folder.selection)
    order = [("score", "descending"), ("rank", "ascending")]
    kept = table.filter(pc.field("kept")).sort_by(order)["position"].to_numpy()
    if not len(kept):
        raise DataError(f"{folder.selection} keeps no record; widen the budget")
    return kept


def _rejected(folder: RunFolder, pool: Pool, rejections: dict, samples: int) -> None:
    if not rejections:
        return
    log.info(f"train: {len(rejections)} of {samples} samples could not be used; see {folder.quarantine}")
    if is_first_rank():
        quarantine = Quarantine.read(folder.quarantine)
        for position, error in rejections.items():
            quarantine.add(pool, position, error, stage="train")
        quarantine.write(folder.quarantine)


def _save(model: MultimodalModel, config: Config, target: Path) -> None:
    """The folder appears by rename: whole, or not at all."""
    if model.sharded:
        weights = trained_weights(model)
        if is_first_rank():
            model = MultimodalModel.load(config.target, "target")
            set_trained_weights(model, weights)
    if is_first_rank():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save(partial)
        os.replace(partial, target)
