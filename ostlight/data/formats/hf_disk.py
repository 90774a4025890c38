"""Folders that Hugging Face's ``Dataset.save_to_disk`` wrote."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.data.formats.columns import (
    check_schema,
    class_names,
    content,
    cut_row,
    hash_rows,
    row,
    validate,
    with_class_names,
)
from ostlight.data.formats.source import RECORD_BYTES, Source
from ostlight.data.sample import kind_of_file
from ostlight.errors import DataError

STATE, INFO = "state.json", "dataset_info.json"
HASH_ROWS, WRITE_ROWS = 64, 256


class HuggingFaceFolder(Source):
    """A row is a record. The Arrow files are mapped into memory, not read.

    The ``datasets`` package is not needed, neither to read nor to write.
    """

    name = "hf"

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        super().__init__(path, record_bytes)
        self._validated: set[tuple[str, int, int]] = set()
        try:
            self._state = _read_object(path / STATE)
            self._info()
            if self._state.get("_indices_files") or self._state.get("_indices_data_files"):
                raise DataError(f"{path} is a view of another data set; write it with flatten_indices() first", path)
            self._data_files = [_inside(path, entry["filename"]) for entry in self._state["_data_files"]]
            tables = self._opened()
            for table in tables:
                check_schema(table.schema, path)
            self.hashes, self.kinds = hash_rows(tables[0].schema, self._batches, record_bytes).arrays()
        except (OSError, LookupError, TypeError, AttributeError, ValueError, struct.error, pa.ArrowException) as error:
            raise DataError(f"{path} is not a whole save_to_disk folder: {error}", path) from error
        self.table_start = np.concatenate([[0], np.cumsum([t.num_rows for t in tables])]).astype(np.int64)
        self.close()

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return path.is_dir() and (path / STATE).is_file() and (path / INFO).is_file()

    def files(self) -> list[Path]:
        return [*self._data_files, self.path / INFO]

    @property
    def folder(self) -> Path:
        return self.path

    def record(self, i: int) -> dict[str, Any]:
        table, k = self._at(i)
        record = row(table, k, self.record_bytes)
        return with_class_names(self._unchanged(i, record, partial(content, record)), self._classes)

    def write(self, kept: Sequence[int], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        data = "data-00000-of-00001.arrow"
        schema = self._opened()[0].schema
        with atomic_path(target / data) as temporary, pa.ipc.new_stream(temporary, schema) as writer:
            for begin in range(0, len(kept), WRITE_ROWS):
                rows = [cut_row(table, k) for table, k in map(self._at, kept[begin : begin + WRITE_ROWS])]
                writer.write_table(pa.concat_tables(rows).combine_chunks())
        atomic_write_text(target / INFO, self._info())
        # ``datasets`` finds the results of ``map`` by the fingerprint, and an earlier subset's may be in the folder.
        with (target / data).open("rb") as written:
            fingerprint = hashlib.file_digest(written, "sha256").hexdigest()[:16]
        # Last, because a folder without its state is not taken for a data set.
        state = {**self._state, "_data_files": [{"filename": data}], "_fingerprint": fingerprint}
        atomic_write_text(target / STATE, json.dumps(state, indent=2))

    def _info(self) -> str:
        """The data set's own description, without the sizes that no longer hold."""
        info = _read_object(self.path / INFO)
        sizes = ("splits", "download_size", "dataset_size", "size_in_bytes", "download_checksums")
        return json.dumps({k: v for k, v in info.items() if k not in sizes}, indent=2)

    def _batches(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for table in self._opened():
            yield from (table.select(columns) if columns else table).to_batches(max_chunksize=HASH_ROWS)

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        return class_names(self._opened()[0].schema)

    def _at(self, i: int) -> tuple[pa.Table, int]:
        n = int(np.searchsorted(self.table_start, i, side="right")) - 1
        return self._opened()[n], int(i - self.table_start[n])

    def _open(self) -> list[pa.Table]:
        return [self._table(file) for file in self._data_files]

    def _table(self, file: Path) -> pa.Table:
        """The mapped table, after its buffers were checked; once for a file that does not change."""
        status = file.stat()
        state = (str(file), status.st_size, status.st_mtime_ns)
        if state not in self._validated:
            _refuse_compressed(file)
        table = pa.ipc.open_stream(pa.memory_map(os.fspath(file))).read_all()
        if state not in self._validated:
            validate(table, file)
            self._validated.add(state)
        return table


def _refuse_compressed(file: Path) -> None:
    """Refuse compressed batches: a few bytes of them may unpack to more than there is memory, and all at once.

    Raises:
        DataError: the file holds one.
        struct.error: it is damaged.
    """
    for message in pa.ipc.MessageReader.open_stream(pa.memory_map(os.fspath(file))):
        if message.type in BATCHES and _is_compressed(message.metadata.to_pybytes(), BATCHES[message.type]):
            raise DataError(f"{file} is compressed, so it can only be unpacked as a whole; write it uncompressed", file)


BATCHES = {"record batch": False, "dictionary": True}
"""Messages of an Arrow stream with values in them, and whether the values are a field of the message's own."""


def _is_compressed(metadata: bytes, is_nested: bool) -> bool:
    """Whether the body of a message is compressed, by its metadata.

    Source: Arrow's ``Message.fbs``; a flatbuffer's tables refer to their fields by a list of offsets.
    """

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(f"<{kind}", metadata, place)[0])

    def field(table: int, n: int) -> int:
        offsets = table - number("i", table)
        offset = number("H", offsets + 4 + 2 * n) if 4 + 2 * n < number("H", offsets) else 0
        return table + offset if offset else 0

    def table(place: int) -> int:
        return place + number("I", place)

    batch = table(field(table(0), 2))
    if is_nested:
        batch = table(field(batch, 1))
    return field(batch, 3) != 0


def _read_object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(f"{file} must hold a JSON object, got {type(value).__name__}", file)
    return value


def _inside(folder: Path, name: Any) -> Path:
    """The file of the folder; a name that leads out of it is refused, and what is no plain file."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{folder / STATE} names the file {name!r}, which is not in the folder", folder)
    file = folder / name
    if not stat.S_ISREG(mode := file.stat().st_mode):
        raise DataError(f"{file} is {kind_of_file(mode)}, no file", folder)
    return file
