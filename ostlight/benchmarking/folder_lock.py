"""A benchmark's folder belongs to one process at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ostlight.errors import BenchmarkError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other benchmarks out of a folder inside the block; a process that dies releases it.

    Raises:
        BenchmarkError: another process uses the folder; the message has its host and process id.
    """
    owner = folder / "benchmark.owner"  # not the lock's own file, which some versions of filelock empty
    try:
        lock = FileLock(folder / "benchmark.lock").acquire(timeout=0)
    except Timeout as error:
        process = owner.read_text() if owner.exists() else "unknown process"
        raise BenchmarkError(
            f"{folder} is in use by another `ostlight benchmark` ({process}); wait for it, stop it, or give this run "
            "another name (name=...)"
        ) from error
    with lock:
        owner.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
