"""Files of tensors by key, of bounded size, that several processes read and write at once."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ostlight.errors import DataError
from ostlight.influence.tensor_files import load_whole, save_whole

log = logging.getLogger(__name__)

UNREAD_S = 24 * 3600.0
"""Files that nobody has read for so long make way for others."""

SHARE_BETWEEN_SCANS = 0.01
"""Of the limit: what a process writes until it looks again at what others have written."""

HEADER = 1024
"""Bytes of a file beside its numbers, at most."""


class FeatureFiles:
    """One file for each key. A file appears whole; a damaged one counts as missing, with a warning.

    Args:
        folder: that holds them; made with the first file.
        limit: bytes of all files. What does not fit is not stored.

    Attributes:
        refused: how many were not stored.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit, self.refused = folder, limit, 0
        self._known = self._since = 0
        self._is_scanned, self._is_writable = False, True

    @property
    def nbytes(self) -> int:
        """Of all files, by the last look at the folder and what this process has written since."""
        if not self._is_scanned:
            self._scan()
        return self._known + self._since

    def get(self, key: str) -> list[Tensor] | None:
        """The tensors stored for a key, on the CPU; ``None`` where there are none."""
        file = self._file(key)
        try:
            os.utime(file)  # read just now
            stored = load_whole(file)
        except (OSError, DataError):  # missing, or removed by another process in between
            return None
        if stored is None:
            return None
        tensors, _ = stored
        return [tensors[str(k)] for k in range(len(tensors))]

    def put(self, key: str, tensors: Sequence[Tensor]) -> bool:
        """Stores tensors; returns whether they fit."""
        size = sum(tensor.nbytes for tensor in tensors) + HEADER
        if not self._is_writable or not self._fits(size):
            self.refused += 1
            return False
        try:
            save_whole(self._file(key), {str(k): tensor for k, tensor in enumerate(tensors)}, sync=False)
        except OSError as error:
            log.warning(f"{self.folder}: nothing more is stored there: {error.strerror or error}")
            self._is_writable = False
            self.refused += 1
            return False
        self._since += size
        return True

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _fits(self, size: int) -> bool:
        if not self._is_scanned or self._since > SHARE_BETWEEN_SCANS * self.limit:
            self._scan()
        return self._known + self._since + size <= self.limit

    def _scan(self) -> None:
        """Counts what is there, and removes files that were not read for long where the limit is near."""
        files = sorted(_files(self.folder))
        self._known, self._since, self._is_scanned = sum(size for _, size, _ in files), 0, True
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        self.limit = min(self.limit, self._known + 0.9 * shutil.disk_usage(existing).free)
        for read, size, file in files:
            if self._known <= 0.8 * self.limit or time.time() - read < UNREAD_S:
                break
            file.unlink(missing_ok=True)
            self._known -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of last use, size and path of each file, unfinished ones of killed processes among them."""
    for file in folder.glob("*/*"):
        try:
            status = file.stat()
        except OSError:
            continue
        yield status.st_mtime, status.st_size, file
