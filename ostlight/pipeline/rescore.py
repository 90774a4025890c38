"""Scores for other anchors from what a run has stored, without a pass over the pool, in a run folder of their own."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_path
from ostlight.data.checked_json import write_json
from ostlight.data.checked_parquet import read_parquet, write_parquet
from ostlight.errors import DataError, RunChangedError
from ostlight.pipeline import fingerprint
from ostlight.pipeline.images_read import check_images
from ostlight.pipeline.inputs import LoadedAnchors, open_pool, read_anchors, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, proxy_context, rescored_from, scoring_fingerprints
from ostlight.pipeline.scoring.rows import checked_columns
from ostlight.pipeline.scoring.writer import audit, missing_shards, part
from ostlight.pipeline.warmup import load_warm_proxy
from ostlight.progress import track
from ostlight.selection.context import ScoringContext, no_anchors
from ostlight.selection.notes import UTILITY
from ostlight.selection.registry import create
from ostlight.selection.score_files import CURE
from ostlight.selection.scores import FIXED_NAMES, OK, Scores
from ostlight.training.trainer import as_in_predict

log = logging.getLogger(__name__)

MAY_DIFFER = frozenset({"anchors", "samples the warm-up is monitored on"})
"""Of what scores are made from, by name: the proxy stays the one that scored."""


def rescore(config: Config, name: str | None = None) -> Path:
    """Writes a run folder with scores for the anchors that ``config`` names; the run that it names holds the scores for
    others. That run is only read.

    ``ostlight select`` with the ``config.yaml`` of the new folder selects from its scores, with any budget.

    Args:
        name: of the new run; by default that of the old one with the name of the anchors' file.

    Returns:
        The new folder.

    Raises:
        DataError: the run has no complete scores, has been rescored itself, or is scored for these very anchors.
        RunChangedError: something other than the anchors differs from what the run was made from, images among it, or
            a folder of the new name holds something else.
        SelectorError: the selector cannot, or has stored nothing to do it with.
    """
    selector, source = create(config.selector.name, config.selector.options), RunFolder.path_of(config)
    old = RunFolder(source, config, write=False)
    if old.made_from("scores") is None:
        raise DataError(f"{source} holds no scores to start from; run `ostlight select` first, with the first anchors")
    if rescored_from(old):
        raise DataError(
            f"{source} holds no products: it is rescored itself, from {rescored_from(old)['rescored from']}"
        )
    config = replace(with_digitmath(config, old), digitmath=None)
    pool = open_pool(config.pool, "pool", selector.needs_answers)
    anchors = read_anchors(config)
    if not anchors.samples:
        raise no_anchors(config.selector.name)
    fingerprints = scoring_fingerprints(config, pool, anchors, selector)
    _check_source(old, fingerprints)
    check_images(old, pool)
    job = ScoringJob(config, old, pool, selector)
    if missing_shards(old.scores, job.shards):
        raise DataError(f"{old.scores} is not complete; run `ostlight select` with the first anchors to its end")
    config = replace(config, name=name or _default_name(config))
    new = RunFolder(RunFolder.path_of(config), config, write=False)
    origin = {"rescored from": str(source), "its scores": fingerprint.of_values(old.made_from("scores"))}
    _check_target(new, fingerprints | origin)
    with RunFolder.owned(config, "rescore") as new:
        new.claim("scores", fingerprints | origin)
        new.write_config()
        write_json(new.rescored, origin)  # first: nothing may be scored in between
        for file in old.images.glob("part-*.parquet"):  # what was read when the products were made
            new.images.mkdir(exist_ok=True)
            with atomic_path(new.images / file.name) as temporary:
                shutil.copyfile(file, temporary)
        with new.cost_log.stage("rescore", config.selector.shown, selector.usage) as cost:
            _write_parts(job, new, anchors)
            cost.samples = len(pool)
        log.info(audit(new.scores, len(pool)))
        log.info(f"next: {shlex.join(['ostlight', 'select', str(new.path / 'config.yaml')])}")
    return new.path


def _write_parts(job: ScoringJob, new: RunFolder, anchors: LoadedAnchors) -> None:
    files = [part(job.folder.scores, shard) for shard in range(job.shards)]
    proxy = load_warm_proxy(job.config, job.folder)
    context = ScoringContext(
        anchors=anchors.samples,
        groups=anchors.groups,
        seed=job.config.seed,
        folder=new.path / "selector",
        _proxy=proxy_context(job, job.folder, proxy) if job.selector.uses_proxy else None,
    )
    if job.selector.scores_utility:
        context.note(UTILITY, True)
    new.scores.mkdir(parents=True, exist_ok=True)
    with as_in_predict(job.config.compute, proxy):
        tables = (read_parquet(file, CURE) for file in track(files, "rescoring", unit="shards"))
        given: list[pa.Table] = []

        def parts() -> Iterator[Scores]:
            for table in tables:
                given.append(table)
                yield Scores(table)

        for number, columns in enumerate(job.selector.rescore(context, parts())):
            table = _replaced(given.pop(0), columns, type(job.selector).__name__)
            write_parquet(table, new.scores / files[number].name)


def _replaced(table: pa.Table, columns: object, selector: str) -> pa.Table:
    """The fixed columns of a shard, with the new score and the new columns in the scored rows."""
    scored = np.flatnonzero(pa.compute.equal(table["state"], OK).to_numpy(zero_copy_only=False))
    checked = checked_columns(columns, len(scored), selector)
    place = np.full(len(table), -1)
    place[scored] = np.arange(len(scored))
    rows = pa.array(place, mask=place < 0)
    result = table.select(list(FIXED_NAMES))
    for name, values in checked.items():
        array = pa.array(list(values) if getattr(values, "ndim", 1) > 1 else values).take(rows)
        if name in FIXED_NAMES:
            result = result.set_column(FIXED_NAMES.index(name), name, array)
        else:
            result = result.append_column(name, array)
    return result


def _check_source(old: RunFolder, fingerprints: dict[str, str]) -> None:
    before = old.made_from("scores") or {}
    if before.get("anchors") == fingerprints["anchors"]:
        raise DataError(f"{old.path} is scored for these very anchors; name others in anchors.path")
    names = (fingerprints.keys() | before.keys()) - MAY_DIFFER
    changed = sorted(name for name in names if fingerprints.get(name) != before.get(name))
    if changed:
        raise RunChangedError(
            f"{old.path} was scored with other inputs; changed besides the anchors: {', '.join(changed)}. Take the "
            "configuration it was scored with",
            changed,
        )


def _check_target(new: RunFolder, fingerprints: dict[str, str]) -> None:
    before = new.made_from("scores")
    if before is None and not new.path.exists():
        return
    if before != fingerprints:
        found = before or {}
        changed = sorted(n for n in fingerprints.keys() | found.keys() if fingerprints.get(n) != found.get(n))
        raise RunChangedError(f"{new.path} exists and holds something else; name another run with --name", changed)


def _default_name(config: Config) -> str:
    stem = re.sub(r"[^\w.-]+", "_", Path(str(config.anchors.path)).stem).strip("_") or "rescored"
    return f"{config.name}-{stem}"
