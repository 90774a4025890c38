"""Trains the target on the selected subset."""

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
from ostlight.errors import BadRecord, DataError
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.images_read import check_images
from ostlight.pipeline.inputs import fingerprint_of_records, open_pool, read_usable, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress import phase
from ostlight.ranks import is_first_rank
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor
from ostlight.training.steps import EncodedPool
from ostlight.training.weights import set_trained_weights, trained_weights

log = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Trains the target on the records the run kept and returns its folder, ``target/``.

    With a development set the best weights by its loss are kept, and training stops early where they get no better. A
    training that was killed resumes from its last checkpoint. ``from_pretrained`` and inference servers load the
    folder; adapters are merged.

    Raises:
        DataError: the run has no selection yet, or an empty one.
        RunChangedError: the folder holds a target trained on other samples or with other settings, or images changed
            since the samples were scored.
    """
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    kept = read_kept(folder)
    pool = open_pool(config.pool, "pool", folder=folder)
    check_images(folder, pool)
    folder.claim("target", target_fingerprints(config, pool, kept))
    folder.write_config("target")
    if (folder.target / "config.json").exists():
        log.info(f"target: already trained in {folder.target}")
        return folder.target
    log.info(f"train: on the {len(kept):,} records that {folder.selection} keeps")
    model = MultimodalModel.load(config.target, "target", config.target.training)
    checkpoints = Checkpoints(folder.path / "checkpoint.ckpt", config.target.checkpoint_minutes)
    rejections = _fit(model, config, folder, EncodedPool(pool, kept, model.encoder), checkpoints)
    _quarantine(folder, pool, rejections, len(kept))
    _save(model, config, folder.target)
    if is_first_rank():
        checkpoints.file.unlink(missing_ok=True)
    log.info(f"target: {folder.target}")
    return folder.target


def target_fingerprints(config: Config, pool: Pool, kept: np.ndarray) -> dict[str, str]:
    """Returns the fingerprint of everything the target's weights depend on."""
    settings = dataclasses.asdict(config.target) | {"path": None, "checkpoint_minutes": None}
    return {
        "pool": pool.fingerprint()[:16],
        "selection": fingerprint.of_values(kept.tolist()),
        "development set": "none" if config.dev.path is None else fingerprint_of_records(config.dev, "dev"),
        "target.path": fingerprint.of_model(config.target.path, "target"),
        "target": fingerprint.of_values(settings),
        "compute.precision": config.compute.precision,
        "seed": str(config.seed),
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
        "package versions": fingerprint.package_versions(),
    }


def read_kept(folder: RunFolder) -> np.ndarray:
    """Returns the positions of the records the run kept, highest score first.

    Raises:
        DataError: nothing was selected yet, or no record was kept.
    """
    if not folder.selection.exists():
        raise DataError(f"{folder.selection} does not exist; run `ostlight select` with this configuration first")
    table = pq.read_table(folder.selection)
    order = [("score", "descending"), ("rank", "ascending")]
    kept: np.ndarray = table.filter(pc.field("kept")).sort_by(order)["position"].to_numpy()
    if not len(kept):
        raise DataError(f"{folder.selection} keeps no record; widen the budget")
    return kept


def _fit(
    model: MultimodalModel, config: Config, folder: RunFolder, data: EncodedPool, checkpoints: Checkpoints
) -> dict[int, BadRecord]:
    """Trains, logs the cost, and returns the records that could not be used."""
    if checkpoints.start:
        log.info(f"train: resumes from step {checkpoints.start} ({checkpoints.file})")
    monitor = _monitor(model, config)
    callbacks = [monitor] if monitor else []
    job = TrainingJob(config.compute, folder.path, "train", config.seed, callbacks, checkpoints, shard=True)
    with folder.cost_log.stage("train", config.selector.shown) as cost:
        cost.resumed = checkpoints.start > 0
        rejections = fit(model, data, job, cost)
        cost.more["rejected"] = len(rejections)
        if monitor is not None:
            cost.more["kept_step"] = monitor.kept_step
    if monitor is not None:
        log.info(monitor.summary("development set", "training", "target"))
    return rejections


def _monitor(model: MultimodalModel, config: Config) -> LossMonitor | None:
    trusted = model.usable(read_usable(config.dev, "dev") if config.dev.path is not None else [], "development set")
    if not trusted:
        return None
    return LossMonitor(lambda: model.batches(trusted, config.compute.tokens_per_batch), config.target.patience)


def _quarantine(folder: RunFolder, pool: Pool, rejections: dict[int, BadRecord], samples: int) -> None:
    if not rejections:
        return
    log.info(f"train: {len(rejections)} of {samples} samples could not be used; see {folder.quarantine}")
    if is_first_rank():
        quarantine = Quarantine.read(folder.quarantine)
        selected = pq.read_table(folder.selection, columns=["position", "id"]).to_pydict()
        ids = dict(zip(selected["position"], selected["id"], strict=True))
        for position, error in sorted(rejections.items()):
            quarantine.add(pool, position, error, stage="train", id=ids.get(position))
        quarantine.write(folder.quarantine)


def _save(model: MultimodalModel, config: Config, target: Path) -> None:
    """Saves the model; the folder appears complete, by rename."""
    with phase("saving the target"):
        _write_model(model, config, target)


def _write_model(model: MultimodalModel, config: Config, target: Path) -> None:
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
