"""Warms up the proxy: brief fine-tuning on a random part of the pool, undone where it does not help."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.config.schema import Config
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import DataError
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, fingerprint_of_records, read_usable
from ostlight.pipeline.run_folder import RunFolder
from ostlight.ranks import is_first_rank
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor
from ostlight.training.optimizer_records import OptimizerRecords
from ostlight.training.steps import EncodedPool
from ostlight.training.trainer import wait_for_all

log = logging.getLogger(__name__)

DONE = "warmup.json"
"""In the proxy's folder; written last."""


def warm_up_proxy(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors) -> MultimodalModel:
    """Returns the warmed-up proxy: loaded from ``folder.proxy`` where it exists, else trained and saved there.

    The loss is monitored on the development set where there is one, else on the anchors; the log says which.

    Raises:
        RunChangedError: the folder holds a proxy made from something else.
    """
    if config.proxy.warmup.fraction == 0:
        return load_base_checkpoint(config)
    folder.claim("proxy", proxy_fingerprints(config, pool, anchors))
    if (folder.proxy / DONE).exists():
        log.info(f"proxy: taken from {folder.proxy}")
    else:
        _warm_up(config, folder, pool, anchors)
    return load_warm_proxy(config, folder)


def load_warm_proxy(config: Config, folder: RunFolder) -> MultimodalModel:
    """Returns the proxy that a run has warmed up, or the one it started from where it skips the warm-up.

    Raises:
        DataError: the run has not warmed it up yet.
    """
    if config.proxy.warmup.fraction == 0:
        return load_base_checkpoint(config)
    if not (folder.proxy / DONE).exists():
        raise DataError(f"{folder.proxy} holds no warmed-up proxy; run `ostlight select` first")
    warm = dataclasses.replace(config.proxy, path=str(folder.proxy))
    return MultimodalModel.load(warm, "proxy", config.proxy.warmup.training)


def load_base_checkpoint(config: Config) -> MultimodalModel:
    """Returns the proxy as it is at ``proxy.path``, before any warm-up, with the settings of its warm-up."""
    return MultimodalModel.load(config.proxy, "proxy", config.proxy.warmup.training)


def proxy_fingerprints(config: Config, pool: Pool, anchors: LoadedAnchors) -> dict[str, str]:
    """Returns the fingerprint of everything the proxy's weights depend on."""
    dev = config.dev.path and fingerprint_of_records(config.dev, "dev")
    return {
        "pool": pool.fingerprint()[:16],
        "samples the warm-up is monitored on": dev or anchors.fingerprint,
        "proxy.path": fingerprint.of_model(config.proxy.path, "proxy"),
        "proxy": fingerprint.of_values(dataclasses.asdict(config.proxy) | {"path": None}),
        "seed": str(config.seed),
        "compute.precision": config.compute.precision,
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
        "package versions": fingerprint.package_versions(),
    }


def read_trusted(config: Config, anchors: LoadedAnchors) -> tuple[list[Sample], str]:
    """Returns the development set where there is one, else the anchors, and what messages call these samples."""
    if config.dev.path is not None:
        return read_usable(config.dev, "dev"), "development set"
    return anchors.samples, "anchors (no development set is named)"


def _warm_up(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors) -> None:
    """Trains the proxy briefly and saves the best weights, with what the steps looked like."""
    model = load_base_checkpoint(config)
    positions = _random_positions(config, pool)
    trusted, trusted_name = read_trusted(config, anchors)
    records = OptimizerRecords()
    monitor = LossMonitor(lambda: model.batches(trusted, config.compute.tokens_per_batch)) if trusted else None
    callbacks = [records, *([monitor] if monitor else [])]
    job = TrainingJob(config.compute, folder.path, "warm-up", config.seed, callbacks)
    with folder.cost_log.stage("warm-up") as cost:
        rejections = fit(model, EncodedPool(pool, positions, model.encoder), job, cost)
        cost.more["rejected"] = len(rejections)
    if rejections:
        log.info(
            f"warm-up: {len(rejections)} of {len(positions)} samples could not be used; scoring lists their reasons"
        )
    if monitor is not None:
        log.info(monitor.summary(trusted_name))
    if is_first_rank():
        model.save(folder.proxy, merge=False)
        if monitor is None or monitor.kept_step:  # steps that were undone are not this proxy's
            records.save(folder.proxy)
        _write_summary(folder.proxy, monitor, trusted_name, len(positions))
    wait_for_all()


def _random_positions(config: Config, pool: Pool) -> np.ndarray:
    """Returns a random part of the pool, in ascending order."""
    count = max(1, round(config.proxy.warmup.fraction * len(pool)))
    return np.sort(np.random.default_rng(config.seed).choice(len(pool), size=count, replace=False))


def _write_summary(folder: Path, monitor: LossMonitor | None, trusted_name: str, samples: int) -> None:
    """Writes ``warmup.json``; that it exists means the warm-up is complete."""
    summary: dict[str, Any] = {"samples": samples, "monitored_on": trusted_name if monitor else None}
    if monitor is not None:
        summary |= {"kept_step": monitor.kept_step, "losses": monitor.losses}
    (folder / DONE).write_text(json.dumps(summary, indent=2) + "\n")
