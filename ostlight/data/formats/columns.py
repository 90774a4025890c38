"""Rows of Arrow tables as records: what Parquet files and Hugging Face folders share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from ostlight.data.formats.source import RecordHashes, own_id
from ostlight.errors import rejecting


def row(table: pa.Table, i: int) -> dict[str, Any]:
    """Row ``i`` as plain values.

    Raises:
        BadRecord: ``unreadable_record``: Python has no value for what a column holds; names the column.
    """
    one = table.slice(i, 1)
    try:
        return dict(one.to_pylist()[0])
    except (pa.ArrowException, OverflowError, ValueError):
        for name, column in zip(one.column_names, one.columns, strict=True):
            with rejecting("unreadable_record", "its value cannot be read", name):
                column.to_pylist()
        raise


def cut_row(table: pa.Table, i: int) -> pa.Table:
    """Row ``i`` as a table of its own, copied: a slice would hold the whole table in memory.

    ``take`` joins all chunks of what it takes from, hence the slice first.
    """
    return table.slice(i, 1).take([0])


def hash_rows(schema: pa.Schema, read: Callable[[list[str] | None], Iterable[pa.RecordBatch]]) -> RecordHashes:
    """Hashes of all rows, in order; from the id column alone where every row has an id.

    Args:
        schema: of the rows.
        read: all rows in batches, of the named columns or (``None``) of all.
    """
    if "id" in schema.names:
        kind = schema.field("id").type
        if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            hashes = RecordHashes()
            for batch in read(["id"]):
                ids = _plain(batch.column(0))
                if None in ids or "" in ids:
                    break
                for id in ids:
                    hashes.add(str(id))
            else:
                return hashes
    hashes = RecordHashes()
    for batch in read(None):
        for record in _plain(batch):
            if record is None:
                hashes.add_unreadable()
                continue
            id = own_id(record)
            hashes.add(id, b"" if id else _content(record))
    return hashes


def _plain(values: pa.Array | pa.RecordBatch) -> list[Any]:
    """Plain values; ``None`` for a row that Python has no values for (a date in the year 292278, broken UTF-8)."""
    try:
        return list(values.to_pylist())
    except (pa.ArrowException, OverflowError, ValueError):
        return [_plain_or_none(values.slice(i, 1)) for i in range(len(values))]


def _plain_or_none(one: pa.Array | pa.RecordBatch) -> Any:
    try:
        return one.to_pylist()[0]
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _content(record: dict[str, Any]) -> bytes:
    """A row's content in one canonical spelling; images by their digest."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, default=_opaque).encode("utf-8", "surrogatepass")


def _opaque(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)
