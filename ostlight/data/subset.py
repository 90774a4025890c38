"""Writes kept records unchanged, in their own format, with their images beside them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.data import llama_factory
from ostlight.data.atomic import atomic_folder, atomic_write_text
from ostlight.data.checked_json import read_json, write_json
from ostlight.data.formats import HuggingFaceFolder, JsonArray, JsonLines, Source
from ostlight.data.images import ImageRoot
from ostlight.data.pool import Pool
from ostlight.data.remote import RemotePath, place
from ostlight.errors import BadRecord, DataError, reading_back
from ostlight.progress import phase, track

log = logging.getLogger(__name__)

MANIFEST, FILES = ".files", "files"
"""Lists what a subset consists of: all else in its folder is the user's."""


def write_subset(
    pool: Pool, positions: Sequence[int] | np.ndarray, folder: Path, unread: Collection[int] = frozenset()
) -> list[Path]:
    """Write the records at ``positions`` as they came: the same bytes, in the same format, one file per pool file.

    Records of one file are written in the order of ``positions`` (so a curriculum survives within a file); records
    of different files stay apart, under the names their files have. Parquet and ``save_to_disk`` records keep
    schema and values. Images named by a path relative to the image root are copied (without taking space, where the
    file system can), so that the same path holds in ``folder``; absolute paths stay as they are. Files of a pool with
    several image roots go to ``piece-1``, ``piece-2``, ... with their images, so that equal names stay apart. Beside
    JSON and JSON lines goes a ``dataset_info.json`` for LLaMA-Factory; a file it could not read as it is gets no entry,
    and a line in the log says why; with a mapping of columns there is none. The records are looked at in one pass over
    the files, in their order.

    ``folder`` is replaced as a whole once everything is written: until then an earlier subset stays as it was, and
    nothing of it survives. Files in it that no call has written are taken over.

    Args:
        unread: those of the positions that are written also where they cannot be read; what they name is then not
            copied.

    Returns:
        The files and ``save_to_disk`` folders written, ``dataset_info.json`` last.

    Raises:
        DataError: no positions, a record that cannot be used, a folder that holds the pool itself, or one whose list of
            files is damaged.
    """
    if not len(positions):
        raise DataError(f"no record is kept, so there is nothing to write to {folder}", folder)
    positions = np.asarray(positions, dtype=np.int64)
    if len(np.unique(positions)) != len(positions):
        raise ValueError("a record can be written once only: positions holds some twice")
    file_of, number = pool.locate_all(positions)
    targets = _targets(pool.sources, _bases(pool, folder))
    _refuse_pool(pool, targets, folder)
    earlier = _Earlier.read(folder, {target.relative_to(folder).as_posix() for target in targets})
    with atomic_folder(folder) as unfinished:
        bases = _bases(pool, unfinished)
        targets = _targets(pool.sources, bases)
        files: set[Path] = set()
        written: list[Path] = []
        entries: dict[str, dict[str, Any]] = {}
        for n in np.unique(file_of).tolist():
            source, target, in_file = pool.sources[n], targets[n], file_of == n
            beside = target if isinstance(source, HuggingFaceFolder) else target.parent
            root = pool.readers[n].root
            place_of_images = beside if root.folder == source.folder else bases[n]
            checked = _CheckedRecords(pool, root, place_of_images, unread, partial(earlier.copy, unfinished))
            records = checked.of(np.sort(positions[in_file]))
            described, problem = _described(source, pool, n, target.relative_to(unfinished).as_posix(), records)
            files |= checked.copies
            with phase(f"writing {target.name}"):
                source.write((number[in_file] - 1).tolist(), target)
            written.append(target)
            files |= {path for path in target.iterdir() if path.is_file()} if target.is_dir() else {target}
            if checked.unreadable:
                log.info(
                    f"{target.name} holds {checked.unreadable:,} records of media that are not read: their files stay "
                    f"where they are, and {llama_factory.FILE_NAME} has no entry for it"
                )
            elif problem is not None:
                log.warning("%s has no entry in %s: %s", target.name, llama_factory.FILE_NAME, problem)
            elif described:
                entries[described["file_name"].rpartition(".")[0].replace("/", "_")] = described
        if entries:
            info = unfinished / llama_factory.FILE_NAME
            atomic_write_text(info, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
            written.append(info)
            files.add(info)
        names = {path.relative_to(unfinished).as_posix() for path in files}
        write_json(unfinished / MANIFEST, {FILES: sorted(names)})
        earlier.take_over(unfinished)
    return [folder / path.relative_to(unfinished) for path in written]


def _refuse_pool(pool: Pool, targets: Sequence[Path], folder: Path) -> None:
    for source in pool.sources:
        if any(place(target.resolve()) == place(source.path.resolve()) for target in targets):
            raise DataError(
                f"{folder} holds the pool's own {source.path.name}; write the subset to another folder", folder
            )


def subset_files(pool: Pool, folder: Path) -> list[Path]:
    """Where ``write_subset`` writes the records of each of the pool's files."""
    return _targets(pool.sources, _bases(pool, folder))


def _described(
    source: Source, pool: Pool, n: int, name: str, records: Iterator[dict[str, Any]]
) -> tuple[dict[str, Any], llama_factory.UnsuitableError | None]:
    """Goes through the records of a file; returns its entry for LLaMA-Factory, empty where it has none, and why."""
    described: dict[str, Any] = {}
    problem: llama_factory.UnsuitableError | None = None
    source.close()  # a new pass, which starts at the file's beginning
    first = next(records, None)
    if first is not None and isinstance(source, JsonLines | JsonArray) and pool.readers[n].columns is None:
        try:
            described = llama_factory.describe(name, chain([first], records))
        except llama_factory.UnsuitableError as error:
            problem = error
    for _ in records:  # those that the description did not come to
        pass
    return described, problem


@dataclass(frozen=True)
class _Earlier:
    """An earlier subset in the same folder.

    Attributes:
        ours: what it consists of, by names within the folder.
    """

    folder: Path
    ours: frozenset[str]

    @classmethod
    def read(cls, folder: Path, ours: Collection[str]) -> _Earlier:
        """
        Args:
            ours: what belongs to it anyway.
        """
        file = folder / MANIFEST
        if not file.exists():
            return cls(folder, frozenset(ours))
        with reading_back(file, f"remove {folder}; the same command writes it again"):
            listed = json.loads(file.read_text(encoding="utf-8"))
            names = listed if isinstance(listed, list) else read_json(file)[FILES]  # a list: of an earlier version
            return cls(folder, frozenset([*ours, *map(str, names)]))

    def copy(self, unfinished: Path, image: Path, target: Path) -> None:
        """Makes ``target``, which lies in ``unfinished``, a file of its own with the image's content.

        What the earlier subset has of it, by size and time, is linked. Elsewhere the file system shares blocks between
        files where it can (btrfs, XFS), and the copy takes no space.
        """
        image = Path(os.path.realpath(image))
        status = image.stat()
        target.parent.mkdir(parents=True, exist_ok=True)
        there = self.folder / target.relative_to(unfinished)
        if there.is_file() and not there.is_symlink():
            before = there.stat()
            same_state = (before.st_size, before.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
            # With several links it may be the pool's own file, as earlier versions wrote it.
            if same_state and before.st_nlink == 1 and _linked(there, target):
                return
        _copy_bytes(image, target, status.st_size)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def take_over(self, unfinished: Path) -> None:
        """Copies files that no subset has written."""
        known = {MANIFEST, llama_factory.FILE_NAME, *self.ours}
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent) / name
                relative = path.relative_to(self.folder)
                target = unfinished / relative
                if relative.as_posix() not in known and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target, follow_symlinks=False)


def _linked(there: Path, target: Path) -> bool:
    """Whether the file system can: some have no links."""
    try:
        os.link(there, target)
    except OSError:
        return False
    return True


def _bases(pool: Pool, folder: Path) -> list[Path]:
    """The folder each file is written below: one for each image root, where the pool has several."""
    roots = [
        None if reader.root.folder == source.folder else reader.root.folder
        for source, reader in zip(pool.sources, pool.readers, strict=True)
    ]
    named = list(dict.fromkeys(root for root in roots if root is not None))
    if len(set(roots)) == 1:
        return [folder] * len(roots)
    return [folder if root is None else folder / f"piece-{named.index(root) + 1}" for root in roots]


def _targets(sources: list[Source], bases: list[Path]) -> list[Path]:
    """Where each file is written: its path below the folder common to all, in its base."""
    common = os.path.commonpath([place(source.path.parent) for source in sources])
    return [base / place(source.path).relative_to(common) for source, base in zip(sources, bases, strict=True)]


class _CheckedRecords:
    """Reads records that are kept, and copies the images they name.

    Args:
        root: of their images.
        folder: gets the images, unless they lie elsewhere.
        unread: records that are kept also where they cannot be read.
        copy: one image, to a path.

    Attributes:
        copies: the images copied so far.
        unreadable: how many of ``unread`` could not be read.
    """

    def __init__(
        self, pool: Pool, root: ImageRoot, folder: Path, unread: Collection[int], copy: Callable[[Path, Path], None]
    ) -> None:
        self.pool, self.root, self.folder, self.unread, self.copy = pool, root, folder, unread, copy
        self.copies: set[Path] = set()
        self.unreadable = 0

    def of(self, positions: np.ndarray) -> Iterator[dict[str, Any]]:
        """The records that can be read, in this order.

        Raises:
            DataError: another record cannot be read.
        """
        is_remote = isinstance(self.root.folder, RemotePath)
        for i in track(positions.tolist(), "images of the subset", unit="records"):
            try:
                record, sample = self.pool.record_and_sample(i)
            except BadRecord as bad:
                if i in self.unread:
                    self.unreadable += 1
                    continue
                raise DataError(f"{self.pool.record_name(i)} cannot be kept: {bad}", self.pool.locate(i)[0]) from bad
            for image in () if is_remote else sample.images:
                if (
                    image.path is not None
                    and (target := self.folder / self.root.relative(image.path)) not in self.copies
                ):
                    self.copy(image.path, target)
                    self.copies.add(target)
            yield record
        if is_remote:
            log.info(
                f"images of the subset stay at {self.root.folder}: name it as the image root of what reads the subset"
            )


def _copy_bytes(source: Path, target: Path, size: int) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        done = 0
        with suppress(OSError, AttributeError):  # the kernel shares blocks if it can; some file systems refuse to try
            while done < size and (count := os.copy_file_range(read.fileno(), write.fileno(), size - done)):
                done += count
        if done < size:
            read.seek(done)
            write.seek(done)
            shutil.copyfileobj(read, write)
