"""The cost so far of stages that still run, on disk: a process that is killed cannot write its cost log line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT_S = 1.0
"""Seconds between two writes: at most this much of what was paid is lost with a killed process."""
WIDTH = 1024
"""Bytes of a file: written by one call at one place, so that a kill leaves the old line or the new one."""
STALE_S = 60.0
"""Age after which a file is taken for left over, on file systems that cannot lock."""

_mine: set[Path] = set()


class Unfinished:
    """Writes ``now()`` to a file of its own, every second and at the end.

    The file is locked for as long as the process lives; a file nobody holds is what a killed process left behind.

    Args:
        folder: of all such files of a run.
        name: of the stage.
        now: the cost log line as it would be if the stage ended now.
    """

    def __init__(self, folder: Path, name: str, now: Callable[[], dict[str, Any]]) -> None:
        self._now = now
        unique = f"{name}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self.path = folder / f"{unique}.json"
        being_made = folder / f".{unique}"
        self._file = _created(being_made)
        with suppress(OSError):  # a file system without locks: there age decides
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._write()
        being_made.rename(self.path)  # under its name only once it is locked
        _mine.add(self.path)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"cost of {name}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._write()

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(self._now()).encode().ljust(WIDTH), 0)

    def close(self, keep: bool) -> None:
        """Stops writing. The file goes, unless what it says stands nowhere else (``keep``)."""
        self._over.set()
        self._thread.join()
        if keep:
            self._write()
        else:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        _mine.discard(self.path)


def _created(path: Path) -> int:
    """A new file; its folder may vanish in between, where a process that shares it finds it empty."""
    while True:
        with suppress(FileNotFoundError):
            with suppress(FileExistsError):  # exist_ok raises where it vanishes a moment later
                path.parent.mkdir(parents=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def take_left_over(folder: Path) -> list[dict[str, Any]]:
    """The lines that processes which live no more left behind; their files are removed."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        with suppress(FileNotFoundError):  # another process that shares the cost log took it first
            if path in _mine or _is_held(path):
                continue
            taken = path.rename(path.with_suffix(f".{os.getpid()}"))
            lines.append(json.loads(taken.read_bytes()))
            taken.unlink()
    with suppress(OSError):  # it is not there, or no longer empty
        folder.rmdir()
    return lines


def _is_held(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return time.time() - path.stat().st_mtime < STALE_S
    return False
