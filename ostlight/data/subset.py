"""Kept records on their way out: unchanged, in their own format, with their images beside them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostlight.data import llama_factory
from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.data.formats import HuggingFaceFolder, JsonArray, JsonLines, Source
from ostlight.data.images import ImageRoot
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord, DataError

log = logging.getLogger(__name__)


def write_subset(pool: Pool, positions: Sequence[int], folder: Path) -> list[Path]:
    """Write the records at ``positions`` as they came: the same bytes, in the same format, one file per pool file.

    Records of one file are written in the order of ``positions`` (so a curriculum survives within a file); records
    of different files stay apart, under the names their files have. Parquet and ``save_to_disk`` records keep
    schema and values. Images named by a path relative to the image root are hard-linked, or copied where that
    cannot be, so that the same path holds in ``folder``; absolute paths stay as they are. Beside JSON and JSON
    lines goes a ``dataset_info.json`` for LLaMA-Factory; a file it could not read as it is gets no entry, and a
    line in the log says why.

    Returns:
        The files and ``save_to_disk`` folders written, ``dataset_info.json`` last.

    Raises:
        DataError: no positions, a record that cannot be used, or a folder that holds the pool itself.
    """
    if not len(positions):
        raise DataError(f"no record is kept, so there is nothing to write to {folder}")
    if len(set(positions)) != len(positions):
        raise ValueError("a record can be written once only: positions holds some twice")
    kept: dict[int, list[int]] = {}
    for i in positions:
        n, k = pool.source_of(int(i))
        kept.setdefault(n, []).append(k)
    targets = {n: folder / name for n, name in _names(pool.sources).items()}
    for source in pool.sources:
        if any(target.resolve() == source.path.resolve() for target in targets.values()):
            raise DataError(f"{folder} holds the pool's own {source.path.name}; write the subset to another folder")
    written: list[Path] = []
    entries: dict[str, dict[str, Any]] = {}
    for n in sorted(kept):
        source, target = pool.sources[n], targets[n]
        entry = llama_factory.Entry() if isinstance(source, JsonLines | JsonArray) else None
        root = pool.readings[n].root
        beside = target if isinstance(source, HuggingFaceFolder) else target.parent
        _link_images(pool, n, kept[n], beside if root.folder == source.folder else folder, root, entry)
        source.write(kept[n], target)
        written.append(target)
        if entry is not None:
            file_name = target.relative_to(folder).as_posix()
            made = entry.made(file_name)
            if made is None:
                log.warning("%s has no entry in %s: %s", target, llama_factory.FILE_NAME, entry.misfit)
            else:
                entries[file_name.rpartition(".")[0].replace("/", "_")] = made
    if entries:
        info = folder / llama_factory.FILE_NAME
        atomic_write_text(info, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
        written.append(info)
    return written


def _names(sources: list[Source]) -> dict[int, Path]:
    """Where each file stands below the folder common to all; equal paths cannot be told apart in one subset."""
    parents = os.path.commonpath([source.path.parent.absolute() for source in sources])
    names = {n: source.path.absolute().relative_to(parents) for n, source in enumerate(sources)}
    if len(set(names.values())) != len(names):
        raise DataError("the pool names the same file twice; name it once")
    return names


def _link_images(
    pool: Pool, n: int, kept: list[int], folder: Path, root: ImageRoot, entry: llama_factory.Entry | None
) -> None:
    begin = pool.first_of(n)
    done: set[Path] = set()
    for k in kept:
        try:
            sample = pool[begin + k]
        except BadRecord as bad:
            raise DataError(f"{pool.record_name(begin + k)} cannot be kept: {bad}") from bad
        if entry is not None:
            entry.see(pool.sources[n].record(k))
        for image in sample.images:
            relative = root.relative(image)
            if relative is not None and image.path is not None and relative not in done:
                _link(image.path, folder / relative)
                done.add(relative)


def _link(image: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system cannot do that.

    Not a symbolic link: it would lead out of the subset's folder, which readers (this one too) refuse, and break when
    the folder is moved.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    image = Path(os.path.realpath(image))
    if target.exists():
        if target.samefile(image):
            return
        target.unlink()
    try:
        os.link(image, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(image, temporary)
