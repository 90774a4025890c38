"""Short names for what files hold, without reading large ones."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from ostlight.data.remote import RemotePath

HASHED_BYTES = 64 << 20
"""Pools up to this size are named by their content, larger ones by size and time of modification of their files."""


def file_key(path: Path, is_small: bool) -> str:
    """Returns a name for what a file holds.

    The SHA-256 of a file of a small pool: the same when it is copied, moved or touched. A large pool is not read merely
    to name it: size and time of modification, which ``mv``, ``cp -a`` and ``rsync -a`` keep, stand for its files.

    A remote file is named by what its server says of it, and read only where that is nothing.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, RemotePath):
        return path.version() or content_key(path)
    if is_small:
        return content_key(path)
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


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
