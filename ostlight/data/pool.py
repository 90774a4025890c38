"""A pool of samples: files of any known format behind one numbering, read a record at a time."""

from __future__ import annotations

import glob
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.data.formats import FORMATS, HuggingFaceFolder, Source, open_source
from ostlight.data.formats.source import given_id
from ostlight.data.ids import Names
from ostlight.data.images import ImageRoot
from ostlight.data.layouts import LAYOUTS, layout_of
from ostlight.data.record import Reading, sample_of
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError

SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".parquet", ".tar"})
NOT_DATA = frozenset({"dataset_info.json"})
OPEN_FILES = 8


class Pool:
    """Records of one or more files, numbered 0, 1, ... in the order of the files.

    Holds the index only: 25 bytes a record. Copies of it can be sent to other processes.
    """

    def __init__(self, sources: list[Source], readings: list[Reading]) -> None:
        self.sources, self.readings = sources, readings
        self._begins = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64)
        self._names = Names(np.concatenate([s.keys for s in sources]), np.concatenate([s.kinds for s in sources]))
        self._recent: OrderedDict[int, Source] = OrderedDict()
        self._fingerprint: str | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        format: str = "auto",
        image_root: str | Path | None = None,
        require_answer: bool = True,
    ) -> Pool:
        """Index the files.

        Args:
            path: a file, a folder of files, a ``save_to_disk`` folder, a pattern (``data/*.jsonl``), or a list of them.
            format: how the file holds its records (``jsonl``, ``json``, ``parquet``, ``hf``, ``webdataset``) or how a
                record says its conversation (``sharegpt``, ``messages``, ``alpaca``, ``question``); ``auto`` tells
                both by the content.
            image_root: folder that image paths are relative to and may not lead out of; each file's own folder
                unless given.
            require_answer: set aside records without an assistant turn.

        Raises:
            DataError: nothing there, an unknown format, or a file without records.
        """
        if format != "auto" and format not in FORMATS and format not in LAYOUTS:
            raise DataError(f"unknown format {format!r}. Known: auto, {', '.join([*FORMATS, *LAYOUTS])}.")
        if image_root is not None and not Path(image_root).is_dir():
            raise DataError(f"image root {image_root} is not a folder")
        sources = [open_source(file, format if format in FORMATS else None) for file in _files(path)]
        shape = format if format in LAYOUTS else None
        readings = []
        for source in sources:
            if shape is None:
                _check_some_layout(source)
            root = ImageRoot(Path(image_root) if image_root is not None else source.folder)
            readings.append(Reading(root, shape, require_answer))
        return cls(sources, readings)

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, i: int) -> Sample:
        """Sample ``i``.

        Raises:
            BadRecord: the record cannot be used.
            IndexError: there is no such record.
        """
        i = int(i)  # a position may come out of an array
        source, k, reading = self._at(i)
        record = source.record(k)
        own = given_id(record)
        if own is None:
            return sample_of(record, name=self._names.content_name(i), position=i, reading=reading)
        first = self._names.first_with_same_id(i)
        if first is not None:
            detail = f"id {own!r} at {self.record_name(i)} was already used at {self.record_name(first)}"
            raise BadRecord("duplicate_id", detail, "id")
        return sample_of(record, name=own, position=i, reading=reading)

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Sample | BadRecord]]:
        """Each position with its sample, or with the reason why there is none; in the order asked for.

        Holds one record at a time. Ascending positions stream through the files; any other order works, at the price
        of a jump in the file per record.
        """
        for i in positions:
            try:
                yield int(i), self[i]
            except BadRecord as bad:
                yield int(i), bad

    def draw(self, count: int, seed: int) -> list[int]:
        """Positions of ``count`` records at random, or of all; the same records whatever order the pool has.

        The first of a longer draw are those of a shorter one.
        """
        return self._names.drawn(count, seed).tolist()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and ``save_to_disk`` folders, in the order of the numbering."""
        return tuple(source.path for source in self.sources)

    def fingerprint(self) -> str:
        """SHA-256 over all files' contents: changes when any byte of a record does, not when files are moved.

        Images that lie beside the files are not part of it.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for source in self.sources:
                for file in source.files():
                    with file.open("rb") as opened:
                        digest.update(hashlib.file_digest(opened, "sha256").digest())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def locate(self, i: int) -> tuple[Path, int]:
        """File of record ``i``, and its number there, counted from 1."""
        n, k = self.source_of(i)
        return self.sources[n].path, k + 1

    def record_name(self, i: int) -> str:
        """Where record ``i`` stands, for messages: ``train.jsonl:record 17``, counted from 1."""
        file, number = self.locate(i)
        return f"{file.name}:record {number}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict()}

    def source_of(self, i: int) -> tuple[int, int]:
        """Which of ``sources`` holds record ``i``, and its index there, both from 0."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of a pool of {len(self)}")
        n = int(np.searchsorted(self._begins, i, side="right")) - 1
        return n, int(i - self._begins[n])

    def first_of(self, n: int) -> int:
        """Position of the first record of source ``n``."""
        return int(self._begins[n])

    def _at(self, i: int) -> tuple[Source, int, Reading]:
        n, k = self.source_of(i)
        if n not in self._recent:
            self._recent[n] = self.sources[n]
            if len(self._recent) > OPEN_FILES:
                self._recent.popitem(last=False)[1].close()
        return self.sources[n], k, self.readings[n]


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """All files meant, in a fixed order.

    Raises:
        DataError: something named is not there, or a folder holds no file of data.
    """
    if not isinstance(path, str | Path):
        if not path:
            raise DataError("the list of pool files is empty")
        return [file for one in path for file in _files(one)]
    one = Path(path)
    if one.is_file() or HuggingFaceFolder.recognizes(one, b""):
        return [one]
    if one.is_dir():
        if (one / "dataset_dict.json").is_file():
            splits = ", ".join(sorted(p.name for p in one.iterdir() if p.is_dir()))
            raise DataError(f"{one} holds several splits ({splits}); name one of these folders")
        found = sorted(p for p in one.iterdir() if p.suffix in SUFFIXES and p.name not in NOT_DATA and p.is_file())
        if not found:
            raise DataError(f"{one} holds no file ending in {', '.join(sorted(SUFFIXES))}")
        return found
    matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not matched:
        raise DataError(f"{path} does not exist")
    return [file for match in matched for file in _files(match)]


def _check_some_layout(source: Source) -> None:
    """Refuse a file whose first records are all no conversations: that is a wrong file, not a few bad records."""
    seen = ""
    for i in islice(range(len(source)), 20):
        try:
            record = source.record(i)
        except BadRecord as bad:
            seen = seen or bad.detail
            continue
        if layout_of(record) is not None:
            source.close()
            return
        seen = f"records have the fields {', '.join(record)}"
    shapes = "; ".join(f"{name} ({', '.join(sorted(shape.FIELDS))})" for name, shape in LAYOUTS.items())
    raise DataError(f"{source.path}: no known conversation in the first records: {seen[:300]}. Known shapes: {shapes}.")
