"""A pool of samples: files of any known format behind one numbering, read a record at a time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import ImageColor

from ostlight.config.schema import Columns, Duplicates, Limits, Piece
from ostlight.data.decode import ImageRules
from ostlight.data.file_key import HASHED_BYTES, file_key
from ostlight.data.files import files_of
from ostlight.data.formats import (
    FORMATS,
    ONE_OBJECT,
    HuggingFaceFolder,
    JsonLines,
    Source,
    described_object,
    open_source,
)
from ostlight.data.formats.source import own_id
from ostlight.data.ids import RecordIds
from ostlight.data.images import image_root_of
from ostlight.data.layouts import LAYOUTS, layout_of
from ostlight.data.mapping import check_columns, suggested_columns, suggestion
from ostlight.data.record import RecordReader
from ostlight.data.record_index import open_indexed, store_index
from ostlight.data.remote import forget, is_remote, path_of, place
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError, UnknownLayoutError, rejecting

OPEN_FILES = 8
METADATA = "metadata"
"""Name (without suffix) of the file that describes a folder of images, by their ``file_name``."""
FIRST_RECORDS = 20
"""Records of a file that must hold a conversation among them."""


class Pool:
    """Records of one or more files, numbered 0, 1, ... in the order of the files.

    Holds the index only: 25 bytes a record, and more for records that occur twice. It can be sent to other processes.
    """

    def __init__(self, sources: list[Source], readers: list[RecordReader], duplicates: Duplicates = "keep") -> None:
        self.sources, self.readers, self.duplicates = sources, readers, duplicates
        self._begins = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64)
        self._ids = RecordIds(np.concatenate([s.hashes for s in sources]), np.concatenate([s.kinds for s in sources]))
        self._recent: OrderedDict[int, Source] = OrderedDict()
        self._fingerprint: str | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | Sequence[str | Path | Piece],
        *,
        format: str = "auto",
        image_root: str | Path | None = None,
        require_answer: bool = True,
        columns: Columns | None = None,
        duplicates: Duplicates = "keep",
        background: str = "white",
        limits: Limits | None = None,
        index: Path | None = None,
        frames: int | None = None,
    ) -> Pool:
        """Index the files.

        Args:
            path: a file, a folder of files, a ``save_to_disk`` folder, a clone of a data set of the hub, a pattern
                (``data/*.jsonl``), or a list of them, as ``Piece`` where one has an image root or a source of its own.
            format: how the file holds its records (``jsonl``, ``json``, ``csv``, ``parquet``, ``hf``, ``webdataset``)
                or how a record holds its conversation (``sharegpt``, ``messages``, ``conversation``, ``texts``,
                ``alpaca``, ``question``); ``auto`` recognizes both by the content.
            image_root: folder that image paths are relative to and may not lead out of; each file's own folder
                unless given.
            require_answer: reject records without an assistant turn.
            columns: which columns (fields) hold question, answer and images, for records of no known layout.
            duplicates: records that share an id: ``keep`` all (the second is called ``ID#2``), keep the ``first``, or
                ``reject`` all of them.
            background: colour behind the transparent pixels of images.
            limits: what a record may hold; the configuration's defaults unless given.
            index: folder where the index of each file is kept, so that the next call reads nothing of it; made if
                missing.

            frames: images that stand for a video (needs PyAV); ``None`` rejects records with videos.

        Paths may be addresses that fsspec knows: ``s3://``, ``gs://``, ``hf://datasets/``, ``https://``.

        Raises:
            DataError: nothing there, an unknown format or colour, a column that no record has, a file without records,
                or one that is named twice.
        """
        if format != "auto" and format not in FORMATS and format not in LAYOUTS:
            raise DataError(f"unknown format {format!r}. Known: auto, {', '.join([*FORMATS, *LAYOUTS])}.")
        layout = format if format in LAYOUTS else None
        limits = limits or Limits()
        rules = ImageRules(limits.image_pixels, limits.record_pixels, limits.image_bytes, background)
        _check_colour(background)
        if frames is not None and importlib.util.find_spec("av") is None:
            raise DataError("videos are read with the package av: pip install 'ostlight[video]'")
        file_format = format if format in FORMATS else None
        read_as = f"{layout} {columns} {limits.record_bytes}"
        forget()  # what servers said of files earlier may not hold any more
        sources, readers = [], []
        places = set[tuple[PurePosixPath, PurePosixPath]]()
        for piece in _pieces(path):
            folder = piece.image_root or image_root
            if folder is not None and not is_remote(folder) and not Path(folder).is_dir():
                raise DataError(f"image root {folder} is not a folder", folder)
            for file in files_of(piece.path):
                real = file.resolve()
                beside = real if file.is_dir() else real.parent
                where = place(real), place(beside if folder is None else path_of(folder).resolve())
                if where in places:  # with other images they are other records
                    raise DataError(f"{file} is named twice; name it once (a link counts as its file)", file)
                places.add(where)
                source, is_known = _opened(file, file_format, limits.record_bytes, read_as, index)
                root = image_root_of(path_of(folder) if folder is not None else source.folder, rules)
                names_images = source.path.stem == METADATA and not isinstance(source, HuggingFaceFolder)
                reader = RecordReader(
                    root, layout, require_answer, columns, names_images, piece.source, limits.characters, frames
                )
                if not is_known:
                    _check_first_records(source, reader)
                    if index is not None:
                        store_index(source, file_format, read_as, index)
                sources.append(source)
                readers.append(reader)
        return cls(sources, readers, duplicates)

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, i: int) -> Sample:
        """Sample ``i``.

        Raises:
            BadRecord: the record cannot be used.
            DataError: its file changed since it was indexed.
            IndexError: there is no such record.
        """
        return self.record_and_sample(i)[1]

    def record_and_sample(self, i: int) -> tuple[dict[str, Any], Sample]:
        """Record ``i`` as its file holds it, and as a sample; read once.

        Raises:
            BadRecord: the record cannot be used.
            DataError: its file changed since it was indexed.
            IndexError: there is no such record.
        """
        i = int(i)  # a position may come out of an array
        n, k = self.source_and_index(i)
        record = _record(self._opened(n), k)
        id = own_id(record)
        if id is None:
            return record, self.readers[n].sample(record, self._ids.content_id(i), i)
        if self.duplicates != "keep":
            self._refuse_duplicate(i, id)
        return record, self.readers[n].sample(record, self._ids.unique_id(i, id), i)

    def _refuse_duplicate(self, i: int, id: str) -> None:
        first = self._ids.first_with_same_id(i)
        if first is not None:
            detail = f"id {id!r} at {self.record_name(i)} was already used at {self.record_name(first)}"
            raise BadRecord("duplicate_id", detail, "id")
        if self.duplicates == "reject" and self._ids.shares_id(i):
            raise BadRecord("duplicate_id", f"id {id!r} at {self.record_name(i)} is used again later", "id")

    @property
    def shared_ids(self) -> tuple[int, int]:
        """Number of ids that several records have, and of the records that have them."""
        return self._ids.shared

    def read(self, positions: Iterable[int]) -> Iterator[tuple[int, Sample | BadRecord]]:
        """Each position with its sample, or with the reason why there is none; in the order of ``positions``.

        Holds one record at a time. Ascending positions stream through the files; any other order costs a seek for each
        record.
        """
        for i in positions:
            try:
                yield int(i), self[i]
            except BadRecord as bad:
                yield int(i), bad

    def random_positions(self, count: int, seed: int) -> list[int]:
        """Positions of ``count`` random records, or of all; the same records whatever order the pool has.

        Of two counts, the smaller gives the first positions of the larger.
        """
        return self._ids.random_positions(count, seed).tolist()

    def random_share(self, share: float, seed: int) -> list[int]:
        """Positions of about a share of the records, in random order: the first ones of ``random_positions``.

        Each record is drawn or not by its own name and the seed: other records, or another order of the pool, change
        nothing for it. So their number varies about ``share`` times the records; 1 draws all.
        """
        return self._ids.random_share(share, seed).tolist()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and ``save_to_disk`` folders, in the order of the numbering."""
        return tuple(source.path for source in self.sources)

    def fingerprint(self) -> str:
        """SHA-256 over what the files hold and how it is read: changes when a record or the format does, not when files
        are moved.

        Files are named by ``file_key``: by their content if they are small together, else by size and time or by the
        version that a server gives them. Images that lie beside the files are not part of it.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            files = [file for source in self.sources for file in source.files() if not is_remote(file)]
            is_small = sum(file.stat().st_size for file in files) <= HASHED_BYTES
            for source, reader in zip(self.sources, self.readers, strict=True):
                how = (source.name, reader.layout, reader.columns, reader.source, reader.characters, reader.root.rules)
                digest.update(f"{how} {reader.frames} {source.record_bytes} {self.duplicates}\n".encode())
                digest.update(b"file_name is an image\n" if reader.names_images else b"")
                digest.update("".join(f"{file_key(file, is_small)}\n" for file in source.files()).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def locate(self, i: int) -> tuple[Path, int]:
        """File of record ``i``, and its number there, counted from 1."""
        n, k = self.source_and_index(i)
        return self.sources[n].path, k + 1

    def locate_all(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[N]`` number of each record's file among ``files``, and the record's number there, counted from 1.

        Raises:
            IndexError: there is no such record.
        """
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"records {positions.min()} to {positions.max()} of a pool of {len(self)}")
        files = np.searchsorted(self._begins, positions, side="right") - 1
        return files, positions - self._begins[files] + 1

    def record_name(self, i: int) -> str:
        """File and number of record ``i``, for messages: ``train.jsonl:record 17``, counted from 1."""
        file, number = self.locate(i)
        return f"{file.name}:record {number}"

    def source_and_index(self, i: int) -> tuple[int, int]:
        """Index in ``sources`` of the file that holds record ``i``, and the record's index there, both from 0."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of a pool of {len(self)}")
        n = int(np.searchsorted(self._begins, i, side="right")) - 1
        return n, int(i - self._begins[n])

    def _opened(self, n: int) -> Source:
        """Source ``n``, after closing another if too many are open."""
        if n not in self._recent:
            self._recent[n] = self.sources[n]
            if len(self._recent) > OPEN_FILES:
                self._recent.popitem(last=False)[1].close()
        return self.sources[n]


def _record(source: Source, i: int) -> dict[str, Any]:
    """Record ``i`` of a source.

    Raises:
        BadRecord: ``bad_json``; ``unreadable_record`` where the library that reads the file refuses this record.
    """
    with rejecting("unreadable_record", "its values cannot be read"):
        return source.record(i)


def _opened(file: Path, format: str | None, record_bytes: int, read_as: str, index: Path | None) -> tuple[Source, bool]:
    """A file's records, and whether its index was there already."""
    try:
        if index is not None and (found := open_indexed(file, format, record_bytes, read_as, index)) is not None:
            return found, True
        return open_source(file, format, record_bytes), False
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}", file) from error


def _pieces(path: str | Path | Sequence[str | Path | Piece]) -> list[Piece]:
    """What ``path`` names, in a fixed order."""
    listed = [path] if isinstance(path, str | Path) else path
    if not listed:
        raise DataError("the list of pool files is empty")
    return [one if isinstance(one, Piece) else Piece(str(one)) for one in listed]


def _check_colour(name: str) -> None:
    try:
        ImageColor.getrgb(name)
    except ValueError as error:
        raise DataError(f"background is {name!r}, no colour; name one (white, black, gray) or give #rrggbb") from error


def _check_first_records(source: Source, reader: RecordReader) -> None:
    """Refuse a file without a conversation in its first records: that is a wrong file, not a few bad records.

    A mapping must name columns that these records have.
    """
    seen, names, readable = "", dict[str, None](), False
    for i in islice(range(len(source)), FIRST_RECORDS):
        try:
            record = _record(source, i)
        except BadRecord as bad:
            seen = seen or bad.detail
            continue
        names |= dict.fromkeys(record)
        readable = True
        if reader.columns is None and (reader.layout is not None or layout_of(record) is not None):
            source.close()
            return
        seen = f"records have the fields {', '.join(record)}"
    source.close()
    if reader.columns is not None and readable:
        check_columns(reader.columns, names, source.path)
    elif reader.columns is None and reader.layout is None:
        if isinstance(source, JsonLines) and len(source) == 1:
            described = described_object(source.path)
            if described != ONE_OBJECT:
                raise DataError(f"{source.path}: {described}", source.path)
        layouts = "; ".join(f"{name} ({', '.join(layout.fields)})" for name, layout in LAYOUTS.items())
        way_out = f" Or say which columns are which, for example `{suggestion(names)}`." if readable else ""
        raise UnknownLayoutError(
            f"{source.path}: no known conversation in the first records: {seen[:300]}. Known layouts: {layouts}."
            f"{way_out}",
            source.path,
            suggested_columns(names),
        )
