"""A benchmark's folder belongs to one process at a time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ostlight.data.atomic import atomic_write_text
from ostlight.errors import BenchmarkError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other benchmarks out of a folder inside the block; a process that dies releases it.

    Raises:
        BenchmarkError: another process uses the folder; the message names its host and pid.
    """
    lock, owner_file = FileLock(folder / "benchmark.lock"), folder / "benchmark.owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = json.loads(owner_file.read_text()) if owner_file.exists() else {"host": "?", "pid": "?"}
        raise BenchmarkError(
            f"{folder} is in use by another `ostlight benchmark` (host {owner['host']}, pid {owner['pid']}); wait for "
            "it, stop it, or give this run another name (name=...)"
        ) from error
    try:
        atomic_write_text(owner_file, json.dumps({"host": platform.node(), "pid": os.getpid()}))
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()
