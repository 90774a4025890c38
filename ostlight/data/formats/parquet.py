"""Parquet files, read a piece at a time."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.atomic import atomic_path
from ostlight.data.formats.columns import cut_row, hash_rows, row
from ostlight.data.formats.source import Source
from ostlight.errors import DataError

WHOLE_GROUP_BYTES = 32 << 20
"""Row groups up to this size (uncompressed) are read at once and kept; larger ones stream."""

KEPT_BYTES = 128 << 20
STREAM_ROWS = 64
WRITE_BYTES = 64 << 20


class Parquet(Source):
    """A row is a record. Rows are reached through their row group, never through the whole table.

    Small row groups are read whole and the last few kept; a large one streams while rows are read in ascending
    order. A group that is jumped back to (a shuffled training over a large file) is unpacked once into a temporary
    file that is mapped, not read.
    """

    name = "parquet"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            reader = self._opened()
            self.hashes, self.kinds = hash_rows(reader.file.schema_arrow, reader.batches).arrays()
        except pa.ArrowException as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}", path) from error
        finally:
            self.close()

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def record(self, i: int) -> dict[str, Any]:
        start, table = self._opened().around(i)
        return row(table, i - start)

    def write(self, kept: Sequence[int], target: Path) -> None:
        reader = self._opened()
        file = reader.file
        schema = file.schema_arrow
        compression = file.metadata.row_group(0).column(0).compression
        with atomic_path(target) as temporary, pq.ParquetWriter(temporary, schema, compression=compression) as writer:
            pending: list[pa.Table] = []
            pending_bytes = 0
            for i in kept:
                start, table = reader.around(i)
                pending.append(cut_row(table, i - start))
                pending_bytes += pending[-1].nbytes
                if pending_bytes > WRITE_BYTES:
                    writer.write_table(pa.concat_tables(pending))
                    pending, pending_bytes = [], 0
            if pending:
                writer.write_table(pa.concat_tables(pending))

    def _open(self) -> Any:
        return _Reader(self.path)


class _Reader:
    """An open Parquet file and the parts of it that are in memory."""

    def __init__(self, path: Path) -> None:
        self.file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        meta = self.file.metadata
        rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._group_start = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._window: tuple[int, pa.Table] | None = None
        self._whole: OrderedDict[int, pa.Table] = OrderedDict()
        self._unpacked: dict[int, pa.Table] = {}
        self._visited: set[int] = set()
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._stream_group, self._stream_next = -1, 0

    def around(self, i: int) -> tuple[int, pa.Table]:
        """A table that holds row ``i``, and the number of its first row."""
        if self._window is None or not 0 <= i - self._window[0] < self._window[1].num_rows:
            self._window = self._load(i)
        return self._window

    def _load(self, i: int) -> tuple[int, pa.Table]:
        group = int(np.searchsorted(self._group_start, i, side="right")) - 1
        start = int(self._group_start[group])
        for loaded in (self._whole, self._unpacked):
            if group in loaded:
                return start, loaded[group]
        streams = self.file.metadata.row_group(group).total_byte_size > WHOLE_GROUP_BYTES
        if streams and group == self._stream_group and i >= self._stream_next:
            return self._stream_on(i)
        if group in self._visited and i != start:  # a jump back; from the first row it would be a new pass
            self._unpacked[group] = self._unpack(group)
            return start, self._unpacked[group]
        self._visited.add(group)
        if streams:
            self._stream_group, self._stream_next, self._stream = group, start, self.batches(group=group)
            return self._stream_on(i)
        self._whole[group] = self.file.read_row_group(group, use_threads=False)
        while len(self._whole) > 1 and sum(table.nbytes for table in self._whole.values()) > KEPT_BYTES:
            self._whole.popitem(last=False)
        return start, self._whole[group]

    def _stream_on(self, i: int) -> tuple[int, pa.Table]:
        for batch in self._stream:
            first, self._stream_next = self._stream_next, self._stream_next + batch.num_rows
            if i < self._stream_next:
                return first, pa.Table.from_batches([batch])
        raise AssertionError("a row group holds as many rows as its metadata says")

    def batches(self, columns: list[str] | None = None, group: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one group, or of all, a few at a time."""
        rows, groups = (1 << 16 if columns else STREAM_ROWS), None if group is None else [group]
        return self.file.iter_batches(batch_size=rows, row_groups=groups, columns=columns, use_threads=False)

    def _unpack(self, group: int) -> pa.Table:
        with tempfile.NamedTemporaryFile(prefix="ostlight-", suffix=".arrow") as temporary:
            with pa.ipc.new_file(temporary.name, self.file.schema_arrow) as writer:
                for batch in self.batches(group=group):
                    writer.write_batch(batch)
            # The mapping outlives the file's name.
            return pa.ipc.open_file(pa.memory_map(temporary.name)).read_all()
