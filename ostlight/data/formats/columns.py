"""Rows of Arrow tables as records: what Parquet files and Hugging Face folders share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from ostlight.data.formats.source import Keys, given_id


def row(table: pa.Table, i: int) -> dict[str, Any]:
    """Row ``i`` as plain values."""
    return table.slice(i, 1).to_pylist()[0]


def cut_row(table: pa.Table, i: int) -> pa.Table:
    """Row ``i`` as a table of its own, copied: a slice would hold the whole table in memory.

    ``take`` joins all chunks of what it takes from, hence the slice first.
    """
    return table.slice(i, 1).take([0])


def add_keys(keys: Keys, batches: Iterable[pa.RecordBatch]) -> None:
    """Keys of whole rows, in order."""
    for batch in batches:
        for record in batch.to_pylist():
            name = given_id(record)
            if name is None:
                keys.add_content(content_bytes(record))
            else:
                keys.add_given(name)


def has_every_id(schema: pa.Schema) -> bool:
    """Whether the table has an id column of a type that can name records."""
    if "id" not in schema.names:
        return False
    kind = schema.field("id").type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def content_bytes(record: dict[str, Any]) -> bytes:
    """A row's content in one canonical spelling; images by their digest."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, default=_opaque).encode("utf-8", "surrogatepass")


def _opaque(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)
