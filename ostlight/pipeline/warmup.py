"""Warms up the proxy: brief fine-tuning on a random part of the pool, undone where it does not help."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_folder
from ostlight.data.checked_json import read_json, write_json
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import FIRST_RECORDS, DataError, read_if_whole
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import worker_count
from ostlight.models.saved_files import check_saved, note_saved
from ostlight.models.vision.cache import opened
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, fingerprint_of_records, read_usable
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.sharded_proxy import shards_proxy
from ostlight.ranks import is_first_rank
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import CHECKS_S, LossMonitor, counted
from ostlight.training.optimizer_records import WARM_UP_AGAIN, OptimizerRecords
from ostlight.training.precision import precision_of
from ostlight.training.steps import EncodedPool
from ostlight.training.trainer import wait_for_all
from ostlight.training.weights import set_trained_weights, trained_weights

log = logging.getLogger(__name__)

DONE = "warmup.json"
"""In the proxy's folder; written last."""
DIVERGED = 2.0
"""Times the loss before a warm-up."""
MADE_FROM = "made_from"
"""In that file: the fingerprint of all that the proxy's weights depend on."""


def warm_up_proxy(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors) -> MultimodalModel:
    """Returns the warmed-up proxy: loaded from ``folder.proxy`` where it exists, else trained and saved there.

    The loss is monitored on the development set where there is one, else on the anchors; the log says which.

    Raises:
        RunChangedError: the folder holds a proxy made from something else.
    """
    if config.proxy.warmup.fraction == 0:
        return load_base_checkpoint(config)
    # A proxy that has scored nothing yet is no work to protect: a setting was wrong, and is corrected.
    has_scored = any(folder.path.rglob("scores/part-*.parquet"))
    made_from = proxy_fingerprints(config, pool, anchors)
    if folder.claim("proxy", made_from, is_empty=not has_scored):
        log.info("proxy: warmed up again: other settings were used before, and nothing was scored with it")
    if is_whole_proxy(folder.proxy, fingerprint.of_values(made_from)):
        log.info(f"proxy: taken from {folder.proxy}")
    else:
        _warm_up(config, folder, pool, anchors, fingerprint.of_values(made_from))
    return load_warm_proxy(config, folder)


def is_whole_proxy(proxy: Path, made_from: str = "") -> bool:
    """Whether the folder holds a warmed-up proxy, undamaged; a warning says what is damaged.

    Args:
        made_from: what it must be made from; one of an earlier version does not say.
    """
    if not (proxy / DONE).exists():
        return False
    found = read_if_whole(proxy / DONE, lambda: _made_from(proxy), "the proxy is warmed up again")
    if found is None or (found and made_from and found != made_from):
        return False
    try:
        check_saved(proxy, "it is warmed up again")
    except DataError as error:
        log.warning(str(error))
        return False
    return True


def _made_from(proxy: Path) -> str:
    """Empty for a proxy of an earlier version."""
    return str(_summary(proxy).get(MADE_FROM, ""))


def _summary(proxy: Path) -> dict[str, Any]:
    return read_json(proxy / DONE)


def load_warm_proxy(config: Config, folder: RunFolder) -> MultimodalModel:
    """Returns the proxy that a run has warmed up, or the one it started from where it skips the warm-up.

    Raises:
        DataError: the run has not warmed it up yet.
    """
    if config.proxy.warmup.fraction == 0:
        return load_base_checkpoint(config)
    if not (folder.proxy / DONE).exists():
        raise DataError(f"{folder.proxy} holds no warmed-up proxy; run `ostlight select` first")
    check_saved(folder.proxy, WARM_UP_AGAIN.format(folder.proxy))
    warm = dataclasses.replace(config.proxy, path=str(folder.proxy))
    return MultimodalModel.load(warm, "proxy", config.proxy.warmup.training)


def divergence(proxy: Path) -> tuple[float, float] | None:
    """The loss on the trusted samples before a warm-up that diverged, and after its last step (infinite where it is no
    number); ``None`` where it did not, or nothing was warmed up.

    It diverged where no step was kept and the last loss is more than ``DIVERGED`` times the first.
    """
    if not (proxy / DONE).exists():
        return None
    summary = read_if_whole(proxy / DONE, lambda: _summary(proxy), "the proxy is warmed up again where it is needed")
    losses = (summary or {}).get("losses", [])
    if not losses or summary is None or summary.get("kept_step", 0):
        return None
    first, last = float(losses[0][1]), float(losses[-1][1])
    last = last if math.isfinite(last) else math.inf
    return (first, last) if last > DIVERGED * first else None


def load_base_checkpoint(config: Config) -> MultimodalModel:
    """Returns the proxy as it is at ``proxy.path``, before any warm-up, with the settings of its warm-up."""
    return MultimodalModel.load(config.proxy, "proxy", config.proxy.warmup.training)


def seconds_per_sample(folder: RunFolder) -> float | None:
    """Returns how long the warm-up took for a sample of a training step, without its checks on trusted samples, by the
    folder's cost log; ``None`` where it holds no warm-up."""
    warm_ups = [cost for cost in folder.cost_log.read() if cost.stage == "warm-up" and "failed" not in cost.more]
    if not warm_ups or not warm_ups[-1].samples:
        return None
    return (warm_ups[-1].wall_s - warm_ups[-1].more.get(CHECKS_S, 0.0)) / warm_ups[-1].samples


def proxy_fingerprints(config: Config, pool: Pool, anchors: LoadedAnchors) -> dict[str, str]:
    """Returns the fingerprint of everything the proxy's weights depend on."""
    dev = config.dev.path and fingerprint_of_records(config.dev, "dev")
    return {
        "pool": pool.fingerprint()[:16],
        "samples the warm-up is monitored on": dev or anchors.fingerprint,
        "proxy.path": fingerprint.of_model(config.proxy.path, "proxy"),
        "proxy": fingerprint.of_values(dataclasses.asdict(config.proxy) | {"path": None}),
        "seed": str(config.seed),
        "compute.precision": precision_of(config.compute),
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
        "package versions": fingerprint.package_versions(),
    }


def read_trusted(config: Config, anchors: LoadedAnchors) -> tuple[list[Sample], str]:
    """Returns the development set where there is one, else the anchors, and what messages call these samples."""
    if config.dev.path is not None:
        return read_usable(config.dev, "dev"), "development set"
    return anchors.samples, "anchors (no development set is named)"


def _warm_up(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors, made_from: str) -> None:
    """Trains the proxy briefly and saves the best weights, with what the steps looked like."""
    model = load_base_checkpoint(config)
    data, drawn = _drawn(config, pool, model)
    trusted, trusted_name = read_trusted(config, anchors)
    trusted = model.usable(trusted, trusted_name)
    records = OptimizerRecords()
    monitor = LossMonitor(lambda: model.batches(trusted, config.compute.tokens_per_batch)) if trusted else None
    callbacks = [records, *([monitor] if monitor else [])]
    checkpoints = _checkpoints(config, folder, made_from)
    if checkpoints.start:
        log.info(f"warm-up: resumes from step {checkpoints.start} ({checkpoints.file})")
    shard = shards_proxy(config.compute)
    job = TrainingJob(config.compute, folder.path, "warm-up", config.seed, callbacks, checkpoints, shard)
    with folder.cost_log.stage("warm-up") as cost, opened(config.compute.vision_cache_gib, "warm-up"):
        cost.resumed = checkpoints.start > 0
        with counted(monitor, cost):
            rejections = fit(model, data, job, cost)
        cost.more["rejected"] = len(rejections)
    if rejections:
        log.info(f"warm-up: {len(rejections)} of {drawn} samples could not be used; scoring lists their reasons")
    if monitor is not None:
        log.info(monitor.summary(trusted_name))
    if model.sharded:
        weights = trained_weights(model)
        if is_first_rank():
            model = load_base_checkpoint(config)
            set_trained_weights(model, weights)
    if is_first_rank():
        with atomic_folder(folder.proxy) as unfinished:
            model.save(unfinished, merge=False)
            if monitor is None or monitor.kept_step:  # steps that were undone are not this proxy's
                records.save(unfinished)
            _write_summary(unfinished, monitor, trusted_name, len(data), made_from)
    wait_for_all()
    checkpoints.remove()


def _checkpoints(config: Config, folder: RunFolder, made_from: str) -> Checkpoints:
    """Returns those of a warm-up made from this; removes those made from something else."""
    file = folder.path / f"warmup-{made_from}.ckpt"
    if is_first_rank():
        for other in folder.path.glob("warmup-*.*"):
            if other.stem != file.stem:
                other.unlink()
    return Checkpoints(file, config.target.checkpoint_minutes)


def _drawn(config: Config, pool: Pool, model: MultimodalModel) -> tuple[EncodedPool, int]:
    """Returns a random part of the usable records, in random order, and the number of records drawn for it.

    Each record is drawn by its name (``Pool.random_share``), and the training sees only those that can be used: a
    record more that cannot, or another order of the pool, changes no step. Where none of those drawn can be used, it is
    the next one that can.

    Raises:
        DataError: no record of the pool can be used.
    """
    drawn = len(pool.random_share(config.proxy.warmup.fraction, config.seed))
    order = pool.random_positions(len(pool), config.seed)
    pool_data, workers = EncodedPool(pool, order, model.encoder), worker_count(config.compute, drawn)
    usable = pool_data.select(order[:drawn]).usable("warm-up", model.collator, workers)
    begin = drawn
    while not len(usable) and begin < len(order):
        usable = pool_data.select(order[begin : begin + FIRST_RECORDS]).usable("warm-up")
        usable, begin = usable.select(usable.positions[:1]), begin + FIRST_RECORDS
    if not len(usable):
        first = pool_data.rejections[order[0]]
        raise DataError(f"warm-up: none of the {len(order)} records can be used; the first: {first}")
    return usable, drawn


def _write_summary(folder: Path, monitor: LossMonitor | None, trusted_name: str, samples: int, made_from: str) -> None:
    """Writes ``warmup.json``; that it exists means the warm-up is complete."""
    summary: dict[str, Any] = {"samples": samples, "monitored_on": trusted_name if monitor else None}
    summary[MADE_FROM] = made_from
    if monitor is not None:
        summary |= {"kept_step": monitor.kept_step, "losses": monitor.losses}
    (folder / DONE).unlink(missing_ok=True)
    note_saved(folder)
    write_json(folder / DONE, summary)
