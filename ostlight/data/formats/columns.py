"""Rows of Arrow tables as records: what Parquet files and Hugging Face folders share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ostlight.data.formats.source import HAS_ID, RecordHashes, check_size, id_hash, identity
from ostlight.errors import BadRecord, DataError, rejecting


def check_schema(schema: pa.Schema, path: Path) -> None:
    """Refuse a table in which two columns have one name: which of them is meant is not known.

    Raises:
        DataError: names the columns.
    """
    if repeated := repeated_names(schema.names):
        raise DataError(f"{path} has several columns called {', '.join(repeated)}; rename them", path)


def repeated_names(names: Sequence[str]) -> list[str]:
    """The names that several columns have, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that is a ``ClassLabel`` of the library ``datasets``."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: f["names"] for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in labels.items() if isinstance(names, list) and name in schema.names}


def with_class_names(record: dict[str, Any], classes: Mapping[str, list[str]]) -> dict[str, Any]:
    """The record with the name of each class in the place of its number; -1 is how ``datasets`` spells a missing one.

    Raises:
        BadRecord: ``bad_field`` where there is no class of that number.
    """
    for column, names in classes.items():
        number = record[column]
        if isinstance(number, int):
            if not -1 <= number < len(names):
                raise BadRecord("bad_field", f"{column} is {number}, and there are {len(names)} classes", column)
            record[column] = None if number < 0 else names[number]
    return record


def validate(table: pa.Table, path: Path) -> None:
    """Refuse a table whose buffers do not hold what it says: to read one would end the process.

    Text that is not UTF-8 is no such fault in a column of texts; its rows are rejected when they are read.

    Raises:
        DataError: names the column.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if not (is_text and "UTF8" in str(error)):
                raise DataError(f"{path} is damaged: column {name!r}: {str(error)[:200]}", path) from error


def unpacked_bytes(values: pa.Table | pa.RecordBatch | pa.ChunkedArray | pa.Array) -> int:
    """Bytes of the values when each stands for itself; a dictionary's entry counts each time it is used."""
    if isinstance(values, pa.Table | pa.RecordBatch):
        return sum(map(unpacked_bytes, values.columns))
    if isinstance(values, pa.ChunkedArray):
        return sum(map(unpacked_bytes, values.chunks))
    kind = values.type
    if pa.types.is_dictionary(kind):
        entries = values.dictionary
        if not (pa.types.is_string(entries.type) or pa.types.is_binary(entries.type)):
            return int(values.indices.nbytes)
        return pc.sum(pc.binary_length(entries).take(values.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(unpacked_bytes, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return unpacked_bytes(values.flatten())
    return int(values.nbytes)


def is_packed(kind: pa.DataType | pa.Schema) -> bool:
    """Whether values of this type, or of a column of this schema, may stand for more bytes than they take."""
    if isinstance(kind, pa.Schema):
        return any(is_packed(field.type) for field in kind)
    inner = [kind.field(k).type for k in range(kind.num_fields)]
    return pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or any(map(is_packed, inner))


def row(table: pa.Table, i: int, limit: int, packed: bool = True) -> dict[str, Any]:
    """Row ``i`` as plain values.

    Args:
        packed: whether its values may stand for more bytes than they take, see ``is_packed``.

    Raises:
        BadRecord: ``record_too_large`` where a column holds more bytes than the limit; ``unreadable_record`` where
            Python has no value for what a column holds. Names the column.
    """
    one = table.slice(i, 1)
    if (packed or one.nbytes > limit) and unpacked_bytes(one) > limit:
        for name, column in zip(one.column_names, one.columns, strict=True):
            check_size(unpacked_bytes(column), limit, name)
        check_size(unpacked_bytes(one), limit)
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


def hash_rows(
    schema: pa.Schema, read: Callable[[list[str] | None], Iterable[pa.RecordBatch]], limit: int
) -> RecordHashes:
    """Hashes of all rows, in order; from the id column alone where every row has an id.

    Args:
        schema: of the rows.
        read: all rows in batches, of the named columns or (``None``) of all.
        limit: bytes of a row that is read.
    """
    if "id" in schema.names:
        kind = schema.field("id").type
        if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            hashes = RecordHashes()
            for batch in read(["id"]):
                ids = list(_plain(batch.column(0), limit))
                if None in ids or "" in ids:
                    break
                for id in ids:
                    hashes.add((id_hash(str(id)), HAS_ID))
            else:
                return hashes
    hashes = RecordHashes()
    for batch in read(None):
        for record in _plain(batch, limit):
            if record is None:
                hashes.add_unreadable()
                continue
            hashes.add(identity(record, partial(content, record)))
    return hashes


def _plain(values: pa.Array | pa.RecordBatch, limit: int) -> Iterable[Any]:
    """Plain values; ``None`` for a row over the limit, or that Python has no values for (broken UTF-8, say)."""
    if unpacked_bytes(values) <= limit:
        try:
            return list(values.to_pylist())
        except (pa.ArrowException, OverflowError, ValueError):
            pass
    return (_plain_or_none(values.slice(i, 1), limit) for i in range(len(values)))


def _plain_or_none(one: pa.Array | pa.RecordBatch, limit: int) -> Any:
    if unpacked_bytes(one) > limit:
        return None
    try:
        return one.to_pylist()[0]
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def content(record: dict[str, Any]) -> bytes:
    """A row's content in one canonical spelling; images by their digest."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, default=_opaque).encode("utf-8", "surrogatepass")


def _opaque(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)
