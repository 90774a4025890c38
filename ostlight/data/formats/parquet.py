"""Parquet files, read a piece at a time."""

from __future__ import annotations

import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.atomic import atomic_path
from ostlight.data.formats.columns import (
    check_schema,
    class_names,
    content,
    cut_row,
    hash_rows,
    is_packed,
    row,
    with_class_names,
)
from ostlight.data.formats.source import RECORD_BYTES, Source
from ostlight.data.remote import RemotePath
from ostlight.errors import BadRecord, DataError

WHOLE_GROUP_BYTES = 32 << 20
"""Row groups up to this size (uncompressed) are read at once and kept; larger ones stream."""

KEPT_BYTES = 128 << 20
UNPACKED_BYTES = 256 << 20
"""Of values that are stored once and used often, as many may be unpacked together."""

MAX_GROWTH = 20
"""A row group that is unpacked to a file may grow to this many times the size of the whole Parquet file."""

DICTIONARY_PAGE, PAGE_HEADER_BYTES = 2, 32
MAX_STORED_BYTES, MAX_RATIO = 1 << 30, 1_000
"""A column of a row group of more bytes than this may be compressed by this factor."""

STREAM_ROWS = 64
WRITE_BYTES = 64 << 20


_COMPRESSIONS = {"uncompressed": "none", "lz4_raw": "lz4", "lzo": "zstd"}
"""Names that files have for compressions, where writers have others."""


class Parquet(Source):
    """A row is a record. Rows are reached through their row group, never through the whole table.

    Small row groups are read whole and the last few kept; a large one streams while rows are read in ascending
    order. A group that is jumped back to (a shuffled training over a large file) is unpacked once into a temporary
    file that is mapped, not read.
    """

    name = "parquet"
    stored = ("hashes", "kinds")

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        super().__init__(path, record_bytes)
        try:
            reader = self._opened()
            schema = reader.file.schema_arrow
            check_schema(schema, path)
            self.hashes, self.kinds = hash_rows(schema, reader.batches, record_bytes).arrays()
            self._writer(io.BytesIO()).close()  # what cannot be written is better known before it is scored
            if len(self) != reader.file.metadata.num_rows:
                raise DataError(f"{path} is damaged: {len(self):,} rows are there, and its end says otherwise", path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {str(error)[:300]}", path) from error
        finally:
            self.close()

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def record(self, i: int) -> dict[str, Any]:
        reader = self._opened()
        start, table = reader.around(i)
        record = row(table, i - start, self.record_bytes, reader.packed)
        return with_class_names(self._unchanged(i, record, partial(content, record)), reader.classes)

    def write(self, kept: Sequence[int], target: Path) -> None:
        reader = self._open()  # one that has read nothing yet, so that this is a first pass
        order = np.argsort(np.asarray(kept, dtype=np.int64), kind="stable")
        pieces = _pieces(reader.cut_row(kept[k]) for k in order)  # forward: each row group is unpacked once
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(target))
            writer = stack.enter_context(self._writer(temporary))
            if (np.diff(order) != 1).any():
                place = np.argsort(order)
                rows = stack.enter_context(_mapped(pieces, reader.file.schema_arrow, target.parent))
                pieces = _pieces(cut_row(rows, i) for i in place.tolist())
            for piece in pieces:
                writer.write_table(piece)

    def _writer(self, target: Path | BinaryIO) -> pq.ParquetWriter:
        """Of a file with the schema and, where it can be written, the compression of this one."""
        file = self._opened().file
        has_columns = file.metadata.num_row_groups and file.metadata.num_columns
        named = self._opened().column(0, 0).compression.lower() if has_columns else "zstd"
        compression = _COMPRESSIONS.get(named, named)
        if compression != "none" and not pa.Codec.is_available(compression):
            compression = "zstd"
        return pq.ParquetWriter(target, file.schema_arrow, compression=compression)

    def _open(self) -> Any:
        return _Reader(self.path)


def _pieces(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Rows together in tables of about ``WRITE_BYTES``."""
    pending: list[pa.Table] = []
    pending_bytes = 0
    for one in rows:
        pending.append(one)
        pending_bytes += one.nbytes
        if pending_bytes > WRITE_BYTES:
            yield pa.concat_tables(pending)
            pending, pending_bytes = [], 0
    if pending:
        yield pa.concat_tables(pending)


@contextmanager
def _mapped(pieces: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> Iterator[pa.Table]:
    """The pieces as one table in a temporary file of ``folder``, mapped: its rows can be read in any order."""
    with tempfile.NamedTemporaryFile(prefix=".ostlight-", suffix=".arrow", dir=folder) as temporary:
        with pa.ipc.new_stream(temporary.name, schema) as writer:
            for piece in pieces:
                writer.write_table(piece)
        yield pa.ipc.open_stream(pa.memory_map(temporary.name)).read_all()


class _Reader:
    """An open Parquet file and the parts of it that are in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        opened = path.open("rb") if isinstance(path, RemotePath) else path
        self.file = pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20)
        self.classes = class_names(self.file.schema_arrow)
        self.packed = is_packed(self.file.schema_arrow)
        meta = self.file.metadata
        rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._group_start = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._window: tuple[int, pa.Table] | None = None
        self._whole: OrderedDict[int, pa.Table] = OrderedDict()
        self._unpacked: dict[int, pa.Table] = {}
        self._visited: set[int] = set()
        self._batch_rows: dict[tuple[int, tuple[str, ...]], int] = {}
        self._probed: set[tuple[int, str]] = set()
        self._never_unpacked: set[int] = set()
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._stream_group, self._stream_next = -1, 0

    def around(self, i: int) -> tuple[int, pa.Table]:
        """A table that holds row ``i``, and the number of its first row."""
        if self._window is None or not 0 <= i - self._window[0] < self._window[1].num_rows:
            self._window = self._load(i)
        return self._window

    def cut_row(self, i: int) -> pa.Table:
        """Row ``i`` as a table of its own."""
        start, table = self.around(i)
        return cut_row(table, i - start)

    def _load(self, i: int) -> tuple[int, pa.Table]:
        group = int(np.searchsorted(self._group_start, i, side="right")) - 1
        start = int(self._group_start[group])
        for loaded in (self._whole, self._unpacked):
            if group in loaded:
                return start, loaded[group]
        meta = self.file.metadata.row_group(group)
        streams = meta.total_byte_size > WHOLE_GROUP_BYTES or self._rows_at_once(group) < meta.num_rows
        if streams and group == self._stream_group and i >= self._stream_next:
            return self._stream_on(i)
        is_jump_back = group in self._visited and i != start  # from the first row it would be a new pass
        if is_jump_back and group not in self._never_unpacked and (unpacked := self._unpack(group)) is not None:
            self._unpacked[group] = unpacked
            return start, unpacked
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
        raise BadRecord("unreadable_record", f"{self.path.name} has fewer rows than its end says, or is damaged")

    def batches(self, columns: list[str] | None = None, group: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one group, or of all, a few at a time."""
        for one in range(self.file.metadata.num_row_groups) if group is None else [group]:
            rows = min(1 << 16 if columns else STREAM_ROWS, self._rows_at_once(one, columns))
            yield from self.file.iter_batches(batch_size=rows, row_groups=[one], columns=columns, use_threads=False)

    def column(self, group: int, k: int) -> pq.ColumnChunkMetaData:
        """What the file says of a column of a row group.

        Raises:
            pa.ArrowException: it contradicts itself. A row is read first, because that raises; to ask a damaged file
                for the description itself ends the process.
        """
        meta = self.file.metadata
        name = self.file.schema.column(k).path.partition(".")[0]
        if (group, name) not in self._probed:
            next(self.file.iter_batches(1, [group], [name], use_threads=False), None)
            self._probed.add((group, name))
        return meta.row_group(group).column(k)

    def _rows_at_once(self, group: int, columns: list[str] | None = None) -> int:
        """Rows of a group that may be unpacked together.

        A few bytes can stand for very many: a long value that is stored once, in the column's dictionary, and used in
        every row. No value is longer than its dictionary, whose size is in the file.

        Raises:
            DataError: a large column's values take a thousand times the bytes they are stored in.
        """
        key = (group, tuple(columns or ()))
        if key not in self._batch_rows:
            rows, longest = max(self.file.metadata.row_group(group).num_rows, 1), 0
            for k in range(self.file.metadata.num_columns):
                if columns is None or self.file.schema.column(k).path.partition(".")[0] in columns:
                    column = self.column(group, k)
                    self._check_ratio(column)
                    longest += self._dictionary_bytes(column) * -(-column.num_values // rows)
            self._batch_rows[key] = min(max(UNPACKED_BYTES // max(longest, 1), 1), 1 << 16)
        return self._batch_rows[key]

    def _check_ratio(self, column: pq.ColumnChunkMetaData) -> None:
        stored, compressed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
        if stored > MAX_STORED_BYTES and stored / compressed > MAX_RATIO:
            raise DataError(
                f"{self.path}: column {column.path_in_schema!r} unpacks {compressed:,} bytes to {stored:,}; if that is "
                "meant, write the file with smaller row groups",
                self.path,
            )

    def _dictionary_bytes(self, column: pq.ColumnChunkMetaData) -> int:
        """Bytes of a column's dictionary, unpacked, from the header of its first page; 0 where it has none."""
        if column.physical_type != "BYTE_ARRAY":
            return 0
        with self.path.open("rb") as file:
            file.seek(min(place for place in (column.dictionary_page_offset, column.data_page_offset) if place))
            kind, size = _page_header(file.read(PAGE_HEADER_BYTES))
        return size if kind == DICTIONARY_PAGE else 0

    def _unpack(self, group: int) -> pa.Table | None:
        """The group in a temporary file, mapped; ``None`` where it would become far larger than it is stored."""
        limit = UNPACKED_BYTES + MAX_GROWTH * self.path.stat().st_size
        with tempfile.NamedTemporaryFile(prefix="ostlight-", suffix=".arrow") as temporary:
            with pa.ipc.new_file(temporary.name, self.file.schema_arrow) as writer:
                for batch in self.batches(group=group):
                    writer.write_batch(batch)
                    if (limit := limit - batch.nbytes) < 0:
                        self._never_unpacked.add(group)
                        return None
            # The mapping outlives the file's name.
            return pa.ipc.open_file(pa.memory_map(temporary.name)).read_all()


def _page_header(data: bytes) -> tuple[int, int]:
    """Kind and unpacked size of a page: the first two fields of its header, whole numbers in Thrift's compact protocol.

    Source: parquet-format, ``PageHeader`` in ``parquet.thrift``.

    Raises:
        ValueError: the bytes are no page header.
    """
    place, values = 0, []
    for _ in range(2):
        if data[place : place + 1] != b"\x15":  # the next field, a 32-bit number
            raise ValueError("a column does not begin with a page")
        place, number, shift = place + 1, 0, 0
        while place < len(data):
            byte = data[place]
            place, number, shift = place + 1, number | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        values.append(number >> 1 ^ -(number & 1))
    return values[0], values[1]
