"""Parquet files with a checksum of all their bytes: a reader of Parquet notices little of a byte that has changed.

The checksum lies between the last page and the footer. Readers find pages by the offsets in the footer, and the footer
from the end of the file, so none of them sees it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.atomic import atomic_path
from ostlight.errors import reading_back

CHECKSUM = b"ostlight crc32 %08x\n"
WRITTEN = re.compile(rb"ostlight crc32 ([0-9a-f]{8})\n")
LENGTH = len(CHECKSUM % 0)

END = 8
"""Bytes at the end of a Parquet file: the footer's length, and ``PAR1``."""

BLOCK = 1 << 20
"""Bytes read at once."""

FILES_REMEMBERED = 100_000
"""Files that are not checked again while their size and time of modification stay."""


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """Writes a table with a checksum: whole, or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
        add_checksum(temporary)


def add_checksum(path: Path) -> None:
    """Puts the checksum into a Parquet file that has none yet."""
    with path.open("r+b") as file:
        begin = _footer_begin(file)
        file.seek(begin)
        footer = file.read()
        checksum = zlib.crc32(footer, _checksum_of(file, begin))
        file.seek(begin)
        file.write(CHECKSUM % checksum + footer)


def read_parquet(
    path: str | Path,
    cure: str,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    schema: pa.Schema | None = None,
) -> pa.Table:
    """Returns the table in a file that this project wrote. One without a checksum is taken as it is.

    Args:
        cure: what to do about a damaged file, for the message.
        columns: by default all.
        filters: as ``pyarrow.parquet.read_table`` takes them.
        schema: likewise.

    Raises:
        DataError: the file is damaged, or is not there.
    """
    with reading_back(path, cure):
        check_parquet(path)
        return pq.read_table(path, columns=columns, filters=filters, schema=schema)


def read_metadata(path: str | Path, cure: str) -> Mapping[bytes, bytes]:
    """Returns the metadata of a file that this project wrote, by key.

    Raises:
        DataError: the file is damaged, or is not there.
    """
    with reading_back(path, cure):
        check_parquet(path)
        return pq.read_schema(path).metadata or {}


def is_whole(path: str | Path) -> bool:
    """Whether a Parquet file is there, as it was written."""
    try:
        check_parquet(path)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def check_parquet(path: str | Path) -> None:
    """Checks a file against its checksum; reads all of it, once while it stays as it is.

    Raises:
        OSError, ValueError, ArrowException: it is not there, is no Parquet, or is not what was written.
    """
    status = os.stat(path)
    _check(str(path), status.st_ino, status.st_size, status.st_mtime_ns)


def checksum_of(path: Path) -> int:
    """Returns a CRC of what a file holds: the one that was written into it, where there is one."""
    with open(path, "rb") as file:
        begin = _footer_begin(file)
        file.seek(max(0, begin - LENGTH))
        written = WRITTEN.fullmatch(file.read(min(begin, LENGTH)))
        return int(written[1], 16) if written else _checksum_of(file, path.stat().st_size)


@lru_cache(FILES_REMEMBERED)
def _check(path: str, inode: int, size: int, modified: int) -> None:
    pq.read_metadata(path)
    with open(path, "rb") as file:
        begin = _footer_begin(file)
        file.seek(max(0, begin - LENGTH))
        mark = file.read(min(begin, LENGTH))
        if _resembles_checksum(mark):
            written, footer = WRITTEN.fullmatch(mark), file.read()
            if written is None or zlib.crc32(footer, _checksum_of(file, begin - LENGTH)) != int(written[1], 16):
                raise ValueError("its bytes are not those that were written")


def _resembles_checksum(mark: bytes) -> bool:
    """Also one that is damaged itself, which must not pass for the end of the pages of a file without any."""
    return sum(one == other for one, other in zip(mark, CHECKSUM % 0, strict=False)) > LENGTH // 2


def _footer_begin(file: BinaryIO) -> int:
    end = file.seek(-END, os.SEEK_END)
    return end - int.from_bytes(file.read(END // 2), "little")


def _checksum_of(file: BinaryIO, size: int) -> int:
    """Of the first ``size`` bytes."""
    checksum = 0
    file.seek(0)
    while size > 0 and (block := file.read(min(size, BLOCK))):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum
