"""Stores every reply on disk at once, so that a resumed run repeats no finished request."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
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
        folder.mkdir(parents=True, exist_ok=True)
        self._positions: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob("replies-*.jsonl")):
            self._index(path)
        self._path = folder / f"replies-{rank:03d}.jsonl"
        self._finish_last_line()
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Reply]] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def get(self, key: str, ask: Callable[[], Reply]) -> Reply:
        """The stored reply, or that of ``ask``; several threads with the same key call it once.

        Raises:
            Exception: whatever ``ask`` raises; nothing is stored then.
        """
        with self._lock:
            place, waiting = self._positions.get(key), self._pending.get(key)
            if place is None and waiting is None:
                mine = self._pending[key] = Future()
        if place is not None:
            return self._read(*place)
        if waiting is not None:
            return waiting.result()
        try:
            reply = ask()
            self._append(key, reply)
            mine.set_result(reply)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[key]
        return reply

    def _append(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock, self._path.open("ab") as file:
            self._positions[key] = (self._path, file.tell())
            file.write(line)

    def _index(self, path: Path) -> None:
        with path.open("rb") as file:
            at = 0
            for line in file:
                # A line may be cut in half by a kill, or be in the writing by another rank just now.
                with suppress(ValueError, KeyError, TypeError):
                    self._positions[json.loads(line)["key"]] = (path, at)
                at += len(line)

    @staticmethod
    def _read(path: Path, at: int) -> Reply:
        with path.open("rb") as file:
            file.seek(at)
            stored = json.loads(file.readline())
        del stored["key"]
        return Reply(**stored)

    def _finish_last_line(self) -> None:
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
