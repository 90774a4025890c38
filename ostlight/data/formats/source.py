"""What every file format offers: a compact index, record i, and kept records written back unchanged."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ostlight.errors import BadRecord, DataError

GIVEN, UNNAMED, UNREADABLE = 0, 1, 2
"""Kinds of record key: hash of the record's own id; hash of its content; none, because it cannot be read."""


def hash64(data: bytes) -> int:
    """A 64-bit hash: among a million records the chance that any two collide is below 1e-7."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def given_id(record: Any) -> str | None:
    """The record's own id as text; ``None`` where it has none (or none that can be used)."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


class Keys:
    """Collects one 64-bit key and its kind per record: 9 bytes each, no Python objects."""

    def __init__(self) -> None:
        self._keys, self._kinds = array("Q"), array("B")

    def add_given(self, name: str) -> None:
        self._append(hash64(b"id\x1f" + name.encode("utf-8", "surrogatepass")), GIVEN)

    def add_content(self, content: bytes) -> None:
        self._append(hash64(content), UNNAMED)

    def add_unreadable(self) -> None:
        self._append(0, UNREADABLE)

    def add_json(self, raw: bytes) -> None:
        """The key of a record that is a JSON object."""
        if b'"id"' not in raw:  # most unnamed records are told by this alone, which spares parsing them twice
            self.add_content(raw.strip())
            return
        try:
            name = given_id(json.loads(raw))
        except (ValueError, RecursionError):
            self.add_unreadable()
            return
        if name is None:
            self.add_content(raw.strip())
        else:
            self.add_given(name)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys ``uint64 [records]`` and kinds ``uint8 [records]``."""
        return np.frombuffer(self._keys, np.uint64), np.frombuffer(self._kinds, np.uint8)

    def _append(self, key: int, kind: int) -> None:
        self._keys.append(key)
        self._kinds.append(kind)


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object from its bytes.

    Raises:
        BadRecord: ``bad_json`` where it is no JSON or no object.
    """
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRecord("bad_json", f"not JSON ({error}); it begins {_beginning(raw)}") from error
    if not isinstance(record, dict):
        raise BadRecord("bad_json", f"a record must be a JSON object, got {_beginning(raw)}")
    return record


def _beginning(raw: bytes) -> str:
    return repr(raw[:60].decode("utf-8", "replace")) + ("..." if len(raw) > 60 else "")


class Source(ABC):
    """One indexed file (or folder) of records.

    Attributes:
        name: the format's name in a config.
        keys: ``uint64 [records]``, see ``Keys``.
        kinds: ``uint8 [records]``: ``GIVEN``, ``UNNAMED`` or ``UNREADABLE``.
    """

    name: ClassVar[str]
    keys: np.ndarray
    kinds: np.ndarray

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._handle_process = 0

    @staticmethod
    @abstractmethod
    def recognizes(path: Path, head: bytes) -> bool:
        """Whether the file is of this format, judged by its first bytes."""

    @abstractmethod
    def record(self, i: int) -> dict[str, Any]:
        """Record ``i`` as plain values; images are paths, bytes or ``{"bytes", "path"}``.

        Raises:
            BadRecord: ``bad_json`` and what the format itself can find wrong.
        """

    @abstractmethod
    def write(self, kept: Sequence[int], target: Path) -> None:
        """The kept records, unchanged, in the order given, as a new file of this format at ``target``."""

    @abstractmethod
    def _open(self) -> Any:
        """Whatever reading needs: it is closed by ``close``, and never pickled."""

    def files(self) -> list[Path]:
        """All files the records come from, in a fixed order."""
        return [self.path]

    @property
    def folder(self) -> Path:
        """Where relative image paths start unless told otherwise."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self.keys)

    def close(self) -> None:
        """Let go of the open file; the next read opens it again."""
        if self._handle is not None and self._handle_process == os.getpid():
            self._handle.close()
        self._handle = None

    def _opened(self) -> Any:
        # A forked worker must not share its parent's file position or buffers.
        if self._handle is None or self._handle_process != os.getpid():
            self._handle, self._handle_process = self._open(), os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class SpanSource(Source):
    """A file whose records are byte ranges.

    Attributes:
        start: ``int64 [records]``, first byte.
        size: ``int64 [records]``, bytes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        starts, sizes, keys = array("q"), array("q"), Keys()
        self._index(starts, sizes, keys)
        self.start, self.size = np.frombuffer(starts, np.int64), np.frombuffer(sizes, np.int64)
        self.keys, self.kinds = keys.arrays()

    @abstractmethod
    def _index(self, starts: array[int], sizes: array[int], keys: Keys) -> None:
        """Append each record's byte range and key."""

    def raw(self, i: int) -> bytes:
        """The record's bytes as they stand in the file."""
        size = int(self.size[i])
        data = self._opened().bytes(int(self.start[i]), size)
        if len(data) != size:
            raise DataError(f"{self.path} changed since it was indexed: record {i + 1} is cut off. Run again.")
        return data

    def record(self, i: int) -> dict[str, Any]:
        return parse_object(self.raw(i))

    def _open(self) -> Any:
        return _Bytes(self.path)


class _Bytes:
    """A file read at any place; closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY)

    def bytes(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def close(self, close: Callable[[int], None] = os.close) -> None:
        # `os` may be gone by the time the interpreter's end gets here; the default argument is not.
        if self._descriptor >= 0:
            close(self._descriptor)
        self._descriptor = -1

    __del__ = close
