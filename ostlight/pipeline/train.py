"""Trains the target on the selected subset."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_folder, temporary_path
from ostlight.data.checked_parquet import read_parquet
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine
from ostlight.errors import BadRecord, DataError, DivergedError, reading_back
from ostlight.models.module import MultimodalModel
from ostlight.models.vision.cache import opened
from ostlight.pipeline import fingerprint
from ostlight.pipeline.images_read import check_images
from ostlight.pipeline.inputs import fingerprint_of_records, open_pool, read_usable, with_digitmath
from ostlight.pipeline.run_folder import SELECT_AGAIN, RunFolder
from ostlight.pipeline.selection_file import check_selection
from ostlight.progress import phase
from ostlight.ranks import is_first_rank
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor, counted
from ostlight.training.order import best_first
from ostlight.training.precision import precision_of, target_compute
from ostlight.training.steps import EncodedPool
from ostlight.training.weights import set_trained_weights, trained_weights

log = logging.getLogger(__name__)

NAME_LENGTH = 8
"""Characters of a target's name that is made from its settings."""


def train(config: Config) -> Path:
    """Trains the target on the records the run kept and returns its folder, ``targets/NAME``.

    The name is ``target.name``, or made from the selection and the settings, so that several targets of one selection
    stand side by side; ``target`` is a link to the one trained last. With a development set the best weights by its
    loss are kept, and training stops early where they get no better. A training that was killed resumes from its last
    checkpoint. ``from_pretrained`` and inference servers load the folder; adapters are merged. Trainings of several
    names may run side by side.

    Raises:
        DataError: the run has no selection yet, or an empty one.
        RunChangedError: a target of that name was trained on other samples or with other settings, or records or images
            changed since the samples were scored.
        RunInUseError: another process trains it, or selects in the run folder.
    """
    with RunFolder.owned(config, "train", shared=True) as folder:
        config = with_digitmath(config, folder)
        kept = read_kept(folder)
        pool = open_pool(config.pool, "pool", folder=folder)
        check_selection(config, pool, folder.selection)
        check_images(folder, pool)
        made_from = target_fingerprints(config, pool, kept)
        target = folder.targets / (config.target.name or fingerprint.of_values(made_from)[:NAME_LENGTH])
        with folder.owned_target(target):
            _train(config, folder, target, made_from, pool, kept)
    return target


def _train(
    config: Config, folder: RunFolder, target: Path, made_from: dict[str, str], pool: Pool, kept: np.ndarray
) -> None:
    checkpoint = target.with_name(f"{target.name}.ckpt")
    is_empty = not (is_trained(target) or checkpoint.exists())
    another_name = "give the target another name (target.name=...)"
    folder.claim(stage_of(target), made_from, is_empty, another_name, holds_work=not is_empty and is_first_rank())
    folder.write_config("target")
    checkpoints = Checkpoints(checkpoint, config.target.checkpoint_minutes)
    if is_trained(target):
        log.info(f"target: already trained in {target}")
    else:
        log.info(f"train: on the {len(kept):,} records that {folder.selection} keeps")
        model = MultimodalModel.load(config.target, "target", config.target.training)
        if config.target.training.order != "shuffled":
            table = read_parquet(folder.selection, SELECT_AGAIN, ["position", "score"])
            kept = best_first(kept, table["position"].to_pylist(), table["score"].to_pylist())
        rejections = _fit(model, config, folder, EncodedPool(pool, kept, model.encoder), checkpoints)
        _save(model, config, target, _rejected(folder, pool, rejections, len(kept)))
        log.info(f"target: {target}")
    if is_first_rank():
        _quarantine(folder, target)
        _link(folder.target, target)
    checkpoints.remove()


def is_trained(target: Path) -> bool:
    """Whether a folder holds a trained model: it appears whole."""
    return (target / "config.json").exists()


def stage_of(target: Path) -> str:
    """Name of a target's training in the manifest."""
    return f"target {target.name}"


def _link(link: Path, target: Path) -> None:
    """Makes ``target`` a link to the target trained last; what an earlier version left there is kept."""
    if link.is_dir() and not link.is_symlink():
        link.rename(_unused(target.with_name("earlier")))
    temporary = temporary_path(link)
    try:
        temporary.symlink_to(Path(target.parent.name) / target.name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError as error:
        log.info(f"no link {link} to it: {error.strerror}")


def _unused(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}-{k}" if k else path.name) for k in itertools.count())
    return next(candidate for candidate in candidates if not candidate.exists())


def target_fingerprints(config: Config, pool: Pool, kept: np.ndarray) -> dict[str, str]:
    """Returns the fingerprint of everything the target's weights depend on."""
    return settings_fingerprints(config, kept) | {
        "pool": pool.fingerprint()[:16],
        "development set": "none" if config.dev.path is None else fingerprint_of_records(config.dev, "dev"),
        "target.path": fingerprint.of_model(config.target.path, "target"),
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
        "package versions": fingerprint.package_versions(),
    }


def settings_fingerprints(config: Config, kept: np.ndarray) -> dict[str, str]:
    """Returns those of them that the configuration and the selection decide."""
    ignored = dict.fromkeys(("path", "name", "precision", "checkpoint_minutes"))
    settings = dataclasses.asdict(config.target) | ignored
    return {
        "selection": fingerprint.of_values(kept.tolist()),
        "target": fingerprint.of_values(settings),
        "compute.precision": precision_of(target_compute(config)),
        "seed": str(config.seed),
    }


def read_kept(folder: RunFolder) -> np.ndarray:
    """Returns the positions of the records the run kept, in the order of the selection, best first.

    Raises:
        DataError: nothing was selected yet, or no record was kept.
    """
    if not folder.selection.exists():
        raise DataError(f"{folder.selection} does not exist; run `ostlight select` with this configuration first")
    table = read_parquet(folder.selection, SELECT_AGAIN)
    with reading_back(folder.selection, SELECT_AGAIN):
        kept: np.ndarray = table.filter(pc.field("kept")).sort_by("rank")["position"].to_numpy()
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
    job = TrainingJob(target_compute(config), folder.path, "train", config.seed, callbacks, checkpoints, shard=True)
    cache = opened(job.compute.vision_cache_gib, "train")
    with folder.cost_log.stage("train", config.selector.shown) as cost, cache:
        cost.resumed = checkpoints.start > 0
        try:
            with counted(monitor, cost):
                rejections = fit(model, data, job, cost)
        except DivergedError:
            checkpoints.remove()  # it would diverge again, and be in the way of other settings
            raise
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


def _rejected(folder: RunFolder, pool: Pool, rejections: dict[int, BadRecord], samples: int) -> Quarantine:
    quarantine = Quarantine()
    if rejections:
        log.info(f"train: {len(rejections)} of {samples} samples could not be used; see {folder.quarantine}")
        selected = read_parquet(folder.selection, SELECT_AGAIN, ["position", "id"]).to_pydict()
        ids = dict(zip(selected["position"], selected["id"], strict=True))
        for position, error in sorted(rejections.items()):
            quarantine.add(pool, position, error, stage="train", id=ids.get(position))
    return quarantine


def _quarantine(folder: RunFolder, target: Path) -> None:
    """Adds the records that a target's training could not use to those of the run."""
    file = target / folder.quarantine.name
    if file.exists():
        with folder.updating():
            Quarantine([*Quarantine.read(folder.quarantine), *Quarantine.read(file)]).write(folder.quarantine)


def _save(model: MultimodalModel, config: Config, target: Path, rejected: Quarantine) -> None:
    """Saves the model, with the records it was not trained on; the folder appears complete, by rename."""
    with phase("saving the target"):
        if model.sharded:
            weights = trained_weights(model)
            if is_first_rank():
                model = MultimodalModel.load(config.target, "target")
                set_trained_weights(model, weights)
        if is_first_rank():
            with atomic_folder(target) as unfinished:
                model.save(unfinished)
                if list(rejected):
                    rejected.write(unfinished / "quarantine.parquet")
