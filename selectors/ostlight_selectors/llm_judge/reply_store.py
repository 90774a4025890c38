"""Stores every reply on disk at once, so that a resumed run repeats no finished request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ostlight_selectors.llm_judge.reply import Reply


class ReplyStore:
    """The replies of a run, by a hash of the request.

    Each rank appends to a file of its own and reads those of all, so a run may resume with another number of ranks.
    A line cut short by a kill is ignored, and its request is repeated. Only the hashes are held in memory.

    Args:
        folder: of the run that is the selector's own.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._positions: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob("replies-*.jsonl")):
            with path.open("rb") as file:
                position = 0
                for line in file:
                    # A line may be cut short by a kill, or another rank may be writing it just now.
                    with suppress(ValueError, KeyError, TypeError):
                        self._positions[json.loads(line)["key"]] = (path, position)
                    position += len(line)
        self._path = folder / f"replies-{rank:03d}.jsonl"
        if self._path.exists():
            with self._path.open("ab") as file:
                file.write(b"\n")  # ends a line that was cut short
        self._locks: dict[str, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def get(self, key: str, ask: Callable[[], Reply]) -> Reply:
        """The stored reply, or that of ``ask``; of several threads with the same key one asks and the others wait.

        Raises:
            Exception: whatever ``ask`` raises; nothing is stored then.
        """
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._positions:
                self._append(key, ask())
            return self._read(*self._positions[key])

    def _append(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock, self._path.open("ab") as file:
            self._positions[key] = (self._path, file.tell())
            file.write(line)

    @staticmethod
    def _read(path: Path, position: int) -> Reply:
        with path.open("rb") as file:
            file.seek(position)
            stored = json.loads(file.readline())
        del stored["key"]
        return Reply(**stored)
