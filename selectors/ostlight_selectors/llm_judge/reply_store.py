"""Stores every reply that a score could be read from at once, so that a resumed run repeats no such request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ostlight_selectors.llm_judge.reply import Reply


class ReplyStore:
    """The replies of a run, by a hash of the request.

    Each rank appends to a file of its own and reads those of all, so a run may resume with another number of ranks.
    A line that was cut short by a kill, or damaged, is ignored, and its request is repeated. Only the hashes are held
    in memory.

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
                    found = _stored(line)
                    if found is not None:
                        self._positions[found[0]] = (path, position)
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

        Args:
            key: of the request.
            ask: returns a reply that may be stored, and raises where there is none.

        Raises:
            Exception: whatever ``ask`` raises; nothing is stored then.
        """
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            stored = self._read(*self._positions[key]) if key in self._positions else None
            if stored is not None:
                return stored
            reply = ask()
            self._append(key, reply)
            return reply

    def _append(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False).encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            self._positions[key] = (self._path, file.tell())
            file.write(line)

    @staticmethod
    def _read(path: Path, position: int) -> Reply | None:
        with path.open("rb") as file:
            file.seek(position)
            found = _stored(file.readline())
        return None if found is None else found[1]


def _stored(line: bytes) -> tuple[str, Reply] | None:
    """Key and reply of a line; ``None`` where it is damaged, or another rank is writing it just now."""
    try:
        fields = json.loads(line)
        key, reply = fields.pop("key"), Reply(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    types = ((key, str), (reply.text, str), (reply.tokens_in, int), (reply.tokens_out, int))
    texts: list[Any] = [reply.refusal, reply.finish]
    logprobs = {} if reply.logprobs is None else reply.logprobs
    sane = (
        all(isinstance(value, kind) for value, kind in types)
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(logprobs, dict)
        and all(isinstance(value, int | float) for value in logprobs.values())
    )
    return (key, reply) if sane else None
