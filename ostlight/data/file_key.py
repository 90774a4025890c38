"""Short names for what files hold, without reading large ones."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

HASHED_BYTES = 64 << 20
"""Files up to this size are named by their content, larger ones by size and time of modification."""


def file_key(path: Path) -> str:
    """Returns a name for what a file holds.

    The SHA-256 of a small file: the same when it is copied, moved or touched. A large file is not read merely to name
    it: its size and its time of modification, which ``mv``, ``cp -a`` and ``rsync -a`` keep.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    return content_key(path)


def content_key(path: Path) -> str:
    """Returns the SHA-256 of a file; a file that did not change is read once in a process.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _hashed(path, (status.st_size, status.st_mtime_ns, status.st_ino))


@lru_cache(maxsize=1 << 16)
def _hashed(path: Path, state: tuple[int, int, int]) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
