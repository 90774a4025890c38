"""The proxy, as it will score: warmed up on a little of the pool, unless that does it harm."""

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
from ostlight.influence.preconditioner import SecondMoments
from ostlight.influence.step_size import UpdateNorms
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, open_pool
from ostlight.pipeline.run_folder import RunFolder
from ostlight.ranks import is_first_rank
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor
from ostlight.training.steps import EncodedPool
from ostlight.training.trainer import wait_for_all

log = logging.getLogger(__name__)

DONE = "warmup.json"


def warm_up_proxy(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors) -> MultimodalModel:
    """The proxy from ``folder.proxy`` where it is there, else made and saved there.

    The loss is watched on the development set where there is one, else on the anchors; the line printed says which.

    Raises:
        RunChangedError: the folder holds a proxy made from something else.
    """
    settings = config.proxy.warmup
    if settings.fraction == 0:
        return load_proxy(config, folder)
    folder.claim("proxy", proxy_fingerprints(config, pool, anchors))
    if (folder.proxy / DONE).exists():
        log.info(f"proxy: taken from {folder.proxy}")
    else:
        _warm(config, folder, pool, anchors)
    return load_proxy(config, folder)


def load_proxy(config: Config, folder: RunFolder) -> MultimodalModel:
    """The proxy as it scores, once it is warmed up: from ``folder.proxy``, or as it came where there is no warm-up."""
    if config.proxy.warmup.fraction > 0:
        config = dataclasses.replace(config, proxy=dataclasses.replace(config.proxy, path=str(folder.proxy)))
    return load_untrained_proxy(config)


def load_untrained_proxy(config: Config) -> MultimodalModel:
    """The proxy as it came, with the settings of its warm-up."""
    return MultimodalModel.load(config.proxy, "proxy", config.proxy.warmup.training)


def proxy_fingerprints(config: Config, pool: Pool, anchors: LoadedAnchors) -> dict[str, str]:
    """Fingerprint of everything the proxy's weights depend on."""
    watched = config.dev.path and open_pool(config.dev, "dev").fingerprint()[:16]
    return {
        "pool": pool.fingerprint()[:16],
        "samples the warm-up is watched on": watched or anchors.fingerprint,
        "proxy.path": fingerprint.of_model(config.proxy.path, "proxy"),
        "proxy": fingerprint.of_values(dataclasses.asdict(config.proxy) | {"path": None}),
        "seed": str(config.seed),
        "training code": fingerprint.of_code(*fingerprint.TRAINING),
    }


def read_trusted(config: Config, anchors: LoadedAnchors) -> tuple[list[Sample], str]:
    """The development set where there is one, else the anchors, and the name of what was read."""
    if config.dev.path is not None:
        dev = open_pool(config.dev, "dev")
        return [s for _, s in dev.read(range(len(dev))) if isinstance(s, Sample)], "development set"
    return anchors.samples, "anchors (no development set is named)"


def _warm(config: Config, folder: RunFolder, pool: Pool, anchors: LoadedAnchors) -> None:
    settings = config.proxy.warmup
    model = load_untrained_proxy(config)
    count = max(1, round(settings.fraction * len(pool)))
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(pool), size=count, replace=False))
    trusted, read_on = read_trusted(config, anchors)
    norms, moments = UpdateNorms(), SecondMoments()
    watch = LossMonitor(lambda: model.batches(trusted, config.compute.tokens_per_batch)) if trusted else None
    with folder.cost_log.stage("warm-up") as entry:
        data = EncodedPool(pool, drawn, model.encoder)
        callbacks = [norms, moments, *([watch] if watch else [])]
        job = TrainingJob(config.compute, folder.path, "warm-up", config.seed, callbacks)
        rejections = fit(model, data, job, entry)
        entry.more["rejected"] = len(rejections)
    if rejections:
        log.info(
            f"warm-up: {len(rejections)} of {count} samples could not be used; scoring lists them with their reasons"
        )
    if watch is not None:
        log.info(watch.summary(read_on))
    if is_first_rank():
        model.save(folder.proxy, merge=False)
        if watch is None or watch.kept_step:  # steps that were all undone say nothing of this proxy
            norms.save(folder.proxy)
            moments.save(folder.proxy)
        _write_done(folder.proxy, watch, read_on, count)
    wait_for_all()


def _write_done(folder: Path, watch: LossMonitor | None, read_on: str, count: int) -> None:
    told: dict[str, Any] = {"samples": count, "watched_on": read_on if watch else None}
    if watch is not None:
        told |= {"kept_step": watch.kept_step, "losses": watch.losses}
    (folder / DONE).write_text(json.dumps(told, indent=2) + "\n")
