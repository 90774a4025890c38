"""Every reply on disk as soon as it is there: a killed run asks nothing twice."""

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


class Replies:
    """The replies of a run, by a hash of what was asked.

    Each rank appends to a file of its own and reads those of all, so a run may go on with another number of ranks. A
    line that a kill cut in half is passed over; its question is asked again. In memory are only the hashes.

    Args:
        folder: of the run that is the selector's own.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob("replies-*.jsonl")):
            self._index(path)
        self._path = folder / f"replies-{rank:03d}.jsonl"
        self._end_line_cut_in_half()
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Reply]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str, ask: Callable[[], Reply]) -> Reply:
        """The reply to a question, asked only where it is not there; of several threads with the same question, once.

        Raises:
            Exception: whatever ``ask`` raises; nothing is kept then.
        """
        with self._lock:
            place, waiting = self._places.get(key), self._asked.get(key)
            if place is None and waiting is None:
                mine = self._asked[key] = Future()
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
                del self._asked[key]
        return reply

    def _append(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock, self._path.open("ab") as file:
            self._places[key] = (self._path, file.tell())
            file.write(line)

    def _index(self, path: Path) -> None:
        with path.open("rb") as file:
            at = 0
            for line in file:
                # A line may be cut in half by a kill, or be in the writing by another rank just now.
                with suppress(ValueError, KeyError, TypeError):
                    self._places[json.loads(line)["key"]] = (path, at)
                at += len(line)

    @staticmethod
    def _read(path: Path, at: int) -> Reply:
        with path.open("rb") as file:
            file.seek(at)
            stored = json.loads(file.readline())
        del stored["key"]
        return Reply(**stored)

    def _end_line_cut_in_half(self) -> None:
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
