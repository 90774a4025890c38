"""Tags as numbers: the values of a tag, and the number of each row's value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ostlight.data.record import MAX_TAG_CHARACTERS

TagCodes = tuple[np.ndarray, np.ndarray]
"""``[K]`` values of a tag, the empty string first, and ``int32 [rows]`` the number of each row's value: 0 where it
lacks the tag. Ten million rows take 40 MB a tag."""


def encode_tags(columns: Iterable[pa.ChunkedArray], only: str | None = None) -> dict[str, TagCodes]:
    """The tags that the rows have, in one pass.

    Args:
        columns: pieces of a table's column of tags; one is in memory at a time.
        only: the one tag to encode; by default all of them.

    Returns:
        By name, in alphabetic order. Values longer than ``MAX_TAG_CHARACTERS``, in tables of earlier versions, are
        left out.
    """
    owners, values = defaultdict[str, list[np.ndarray]](list), defaultdict[str, list[pa.Array]](list)
    rows = 0
    for column in columns:
        for maps in column.chunks:
            keys, items, row = _entries(maps, rows)
            rows += len(maps)
            is_tag = pc.less_equal(pc.utf8_length(items), MAX_TAG_CHARACTERS)
            for name in keys.unique().to_pylist() if only is None else [only]:
                chosen = pc.and_(pc.equal(keys, name), is_tag)
                owners[name].append(row[chosen.to_numpy(zero_copy_only=False)])
                values[name].append(items.filter(chosen).cast(pa.large_string()))
    return {
        name: _encoded(values[name], np.concatenate(owners[name]), rows)
        for name in sorted(values)
        if any(map(len, values[name]))
    }


def of_rows(encoded: TagCodes, rows: np.ndarray) -> TagCodes | None:
    """The codes of some rows, with the values that these have, by first occurrence; ``None`` where they have none."""
    values, codes = encoded
    codes = codes[rows]
    first = np.full(len(values), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of rows with one value, the last written is the first one
    used = np.argsort(first, kind="stable")
    used = used[(first[used] < len(codes)) & (used > 0)]
    number = np.zeros(len(values), dtype=np.int32)
    number[used] = np.arange(1, len(used) + 1)
    return (values[np.concatenate([[0], used])], number[codes]) if len(used) else None


def _entries(maps: pa.MapArray, first_row: int) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Names and values of all tags of a piece, and the row each belongs to."""
    if maps.null_count:
        maps = maps.take(pa.array(np.arange(len(maps))))  # a missing map may point at entries
    offsets = maps.offsets.to_numpy()
    entries = slice(int(offsets[0]), int(offsets[-1]))
    row = np.repeat(np.arange(first_row, first_row + len(maps), dtype=np.int32), np.diff(offsets))
    return maps.keys[entries], maps.items[entries], row


def _encoded(values: list[pa.Array], owners: np.ndarray, rows: int) -> TagCodes:
    dictionaries = pa.chunked_array(values, pa.large_string()).dictionary_encode()
    codes = np.zeros(rows, dtype=np.int32)
    codes[owners] = 1 + np.concatenate([chunk.indices.to_numpy() for chunk in dictionaries.chunks])
    return np.array(["", *dictionaries.chunk(0).dictionary.to_pylist()], dtype=object), codes
