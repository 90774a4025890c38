"""Opens the pool, the anchors and the question sets that a configuration names."""

from __future__ import annotations

import glob
import logging
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ostlight.config.schema import Anchors, Config, Data, PoolData, Proxy, Target
from ostlight.data.checked_parquet import is_whole
from ostlight.data.overlap import overlap_message, overlaps
from ostlight.data.pool import Pool
from ostlight.data.remote import is_remote
from ostlight.data.sample import Sample
from ostlight.data.unread import unread_media
from ostlight.digitmath.build import Files, build
from ostlight.digitmath.model import checkpoint
from ostlight.errors import BadRecord, ConfigError, DataError
from ostlight.pipeline import fingerprint
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress import phase, track
from ostlight.ranks import is_first_rank
from ostlight.suggest import nearest_path

log = logging.getLogger(__name__)

T = TypeVar("T", Data, PoolData, Anchors, Proxy, Target)

MAX_IDS_LISTED = 5
"""Ids that a message lists."""


def with_digitmath(config: Config, folder: RunFolder) -> Config:
    """Returns the configuration with the built-in pool and models where it names none; writes the pool if missing.

    Raises:
        ConfigError: without the built-in pool, data paths that do not exist; lists all of them.
    """
    if config.digitmath is None:
        _refuse_missing(config)
        return config
    data = folder.path / "data"
    files = Files.in_folder(data)
    settings = fingerprint.of_values(vars(config.digitmath))
    made_from = {"digitmath": settings, "data code": fingerprint.of_code(*fingerprint.DATA)}
    made_from |= {"package versions": fingerprint.package_versions()}
    folder.claim("data", made_from, is_empty=not any(path.exists() for path in astuple(files)))
    damaged = [path for path in astuple(files) if not is_whole(path)] if is_first_rank() else []
    if damaged:
        if written := [path for path in astuple(files) if path.exists()]:
            name = next(iter(damaged))
            log.warning(f"{name} is {'damaged' if name in written else 'missing'}; the built-in pool is written again")
        with phase("writing the built-in pool"):
            build(config.digitmath, data)
    config = replace(
        config,
        pool=_filled(config.pool, files.pool),
        anchors=_filled(config.anchors, files.anchors),
        dev=_filled(config.dev, files.dev),
        test=_filled(config.test, files.test),
        proxy=config.proxy if config.proxy.path else _filled(config.proxy, checkpoint("proxy")),
        target=config.target if config.target.path else _filled(config.target, checkpoint("target")),
    )
    if config.benchmark is not None and config.benchmark.defect_labels is None:
        config = replace(config, benchmark=replace(config.benchmark, defect_labels=str(files.defect_labels)))
    return config


def _refuse_missing(config: Config) -> None:
    named = {"pool": config.pool, "anchors": config.anchors, "dev": config.dev, "test": config.test}
    problems = [
        f"{name}.path: {piece.path} does not exist (looked in {Path.cwd()}){_nearest(Path(piece.path))}"
        for name, data in named.items()
        for piece in data.pieces
        if not is_remote(piece.path) and not Path(piece.path).exists() and not glob.glob(piece.path, recursive=True)
    ]
    if problems:
        raise ConfigError(problems)


def _nearest(path: Path) -> str:
    near = nearest_path(path)
    return f"; did you mean {near}?" if near else ""


def _filled(data: T, path: Path) -> T:
    return data if data.path is not None else replace(data, path=str(path))


def open_pool(data: Data, where: str, require_answer: bool = True, folder: RunFolder | None = None) -> Pool:
    """Opens the records of one setting (``pool``, ``anchors``, ``dev``, ``test``).

    Args:
        folder: of the run; keeps the index of the files, so that it is built once.

    Raises:
        ConfigError: no path is set.
        DataError: the file is missing, of unknown format, or holds no record.
    """
    if data.path is None:
        raise ConfigError([f"{where}.path is missing"])
    with phase(f"opening {where}.path"):
        pool = Pool.open(
            data.pieces,
            format=data.format,
            image_root=data.image_root,
            require_answer=require_answer,
            columns=data.columns,
            duplicates=data.duplicates,
            background=data.background,
            limits=data.limits,
            frames=data.video.frames if data.video is not None else None,
            index=folder.index if folder is not None else None,
        )
    if not len(pool):
        raise DataError(f"{where}.path: {data.path} holds no record")
    return pool


def read_usable(data: Data, where: str) -> list[Sample]:
    """Returns the usable records of one setting."""
    pool = open_pool(data, where)
    records = track(pool.read(range(len(pool))), f"reading {where}.path", len(pool), "records")
    return [sample for _, sample in records if isinstance(sample, Sample)]


@dataclass
class LoadedAnchors:
    """The anchors in memory, with the group of each; they are few, and every selector may look at them."""

    samples: list[Sample]
    groups: list[str]
    fingerprint: str

    @property
    def group_count(self) -> int:
        """Number of groups; 1 where the anchors have none."""
        return max(1, len(set(self.groups)))


def read_anchors(config: Config) -> LoadedAnchors:
    """Returns all anchors; none where the configuration names no file.

    Raises:
        DataError: an anchor cannot be read (anchors are trusted, so none is rejected), or lacks the group's tag.
    """
    if config.anchors.path is None:
        return LoadedAnchors([], [], "none")
    pool = open_pool(config.anchors, "anchors")
    samples: list[Sample] = []
    for position, read in track(pool.read(range(len(pool))), "reading the anchors", len(pool), "records"):
        if isinstance(read, BadRecord):
            raise DataError(f"anchors: {pool.record_name(position)} cannot be used: {read}; fix or remove it")
        samples.append(read)
    group = config.anchors.group
    without = [s.id for s in samples if group is not None and group not in s.tags]
    if without:
        raise DataError(f"anchors.group is {group!r}, a tag these anchors lack: {', '.join(without[:MAX_IDS_LISTED])}")
    groups = [s.tags[group] if group else "" for s in samples]
    return LoadedAnchors(samples, groups, f"{_with_images(pool, samples)}:{group}")


def fingerprint_of_records(data: Data, where: str) -> str:
    """Returns the fingerprint of a setting's files and of the images that its usable records name.

    For few records (anchors, development and test sets): all of them are read.
    """
    return _with_images(open_pool(data, where), read_usable(data, where))


def _with_images(pool: Pool, samples: list[Sample]) -> str:
    images = fingerprint.of_images(samples)
    records = pool.fingerprint()[: fingerprint.LENGTH]
    return records if images == "none" else f"{records} with images {images}"


def warn_of_records(pool: Pool) -> None:
    """Says which records share an id, and warns of fields that look like media and are not read."""
    if not is_first_rank():
        return
    ids, records = pool.shared_ids
    if ids:
        what = {
            "keep": "all are kept, the second of an id as ID#2 (pool.duplicates=first or reject rejects them)",
            "first": "only the first of each is kept",
            "reject": "all of them are rejected",
        }
        log.info(f"{records:,} records share {ids:,} {'id' if ids == 1 else 'ids'}: {what[pool.duplicates]}")
    unread = unread_media(pool)
    if unread.fields:
        log.warning(f"{unread}; name images in `image` or `images`, or map the columns with pool.columns")


def warn_of_overlap(config: Config, anchors: LoadedAnchors, pool: Pool | None = None) -> None:
    """Warns of anchors that are also in the test set, whose accuracy would be too good, or in the pool.

    Args:
        pool: costs a pass over it; by default ``ostlight.pipeline.scoring.overlap`` looks while it is scored.
    """
    others = {} if pool is None else {"pool": pool}
    if config.test.path is not None:
        others["test set"] = open_pool(config.test, "test")
    for where, other in others.items():
        found = overlaps(anchors.samples, other)
        if found:
            log.warning(overlap_message(found, where))
