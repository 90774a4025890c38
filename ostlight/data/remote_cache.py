"""A local cache of what was read from remote files, of bounded size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ostlight.data.atomic import atomic_path
from ostlight.errors import DataError

CACHE_FOLDER, CACHE_GB = "OSTLIGHT_CACHE", "OSTLIGHT_CACHE_GB"
"""Environment variables: where remote files are cached (``~/.cache/ostlight``), and how much (20 GB)."""


@cache
def cache_folder() -> Path:
    named = os.environ.get(CACHE_FOLDER)
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ostlight"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}, the cache of remote files: {error.strerror}; set {CACHE_FOLDER}", folder) from error
    return folder


def cached(key: str, fetch: Callable[[], bytes]) -> Path:
    """The local file of what ``key`` names; fetched where it is not there."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    file = cache_folder() / "files" / digest[:2] / digest
    try:
        os.utime(file)  # used just now
    except OSError:
        data = fetch()
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_bytes(data)
        _usage.add(len(data))
    return file


def read_cached(file: Path, fetch: Callable[[], bytes]) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # another process needed the space in between
        return fetch()


class _Usage:
    """Keeps the cache within its limit: what was used longest ago goes first."""

    def __init__(self) -> None:
        self._bytes = -1

    def add(self, count: int) -> None:
        """Count a new file, and make space where the limit is passed. Other processes are counted then."""
        limit = _limit_bytes()
        self._bytes = self._bytes + count if self._bytes >= 0 else sum(size for _, size, _ in _cached_files())
        if self._bytes <= limit:
            return
        files = sorted(_cached_files())
        self._bytes = sum(size for _, size, _ in files)
        for _, size, path in files[:-1]:  # the newest is about to be read
            if self._bytes <= 0.8 * limit:
                break
            path.unlink(missing_ok=True)
            self._bytes -= size


_usage = _Usage()


def _limit_bytes() -> float:
    text = os.environ.get(CACHE_GB, "20")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit > 0:
        raise DataError(f"{CACHE_GB} must be a number of gigabytes above 0; got {text!r}")
    return limit * 1e9


def _cached_files() -> list[tuple[float, int, Path]]:
    """Time of last use, size and path of all files in the cache."""
    found = []
    for file in (cache_folder() / "files").glob("*/*"):
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((status.st_mtime, status.st_size, file))
    return found
