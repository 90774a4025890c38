"""What every file format offers: a compact index, record i, and records written back unchanged."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ostlight.data.atomic import atomic_path
from ostlight.data.remote import Blocks, RemotePath
from ostlight.errors import BadRecord, DataError

RECORD_BYTES = 50_000_000
"""Limit of a record's size unless the configuration gives another."""

HAS_ID, NO_ID, UNREADABLE = 0, 1, 2
"""What a record's hash is of: its own id; its content; nothing, because it cannot be read."""


def own_id(record: Any) -> str | None:
    """The record's own id as text; ``None`` where it has none (or none that can be used)."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # how a table with a missing id spells a whole number
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and not is_no_id(value) else None


def is_no_id(value: Any) -> bool:
    """Whether the value of an ``id`` field says that there is none."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


class RecordHashes:
    """Collects a 64-bit hash of each record and what it is of: 9 bytes each, no Python objects.

    Among a million records the chance that any two hashes collide is below 1e-7.
    """

    def __init__(self) -> None:
        self._hashes, self._kinds = array("Q"), array("B")

    def add(self, id: str | None, content: bytes = b"") -> None:
        """Add a record with this id, or, where it has none, with this content."""
        if id is None:
            self._append(_hash(content), NO_ID)
        else:
            self._append(id_hash(id), HAS_ID)

    def add_json(self, raw: bytes) -> None:
        """Add a record that is a JSON object."""
        if b'"id"' not in raw:  # spares parsing most records without an id twice
            self.add(None, raw.strip())
            return
        try:
            self.add(own_id(json.loads(raw)), raw.strip())
        except (ValueError, RecursionError):
            self.add_unreadable()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes ``uint64 [records]`` and kinds ``uint8 [records]``."""
        return np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._kinds, np.uint8)

    def add_unreadable(self) -> None:
        """Add a record that cannot be read."""
        self._hashes.append(0)
        self._kinds.append(UNREADABLE)

    def _append(self, hash: int, kind: int) -> None:
        self._hashes.append(hash)
        self._kinds.append(kind)


def id_hash(id: str) -> int:
    """64-bit hash of a record's own id."""
    return _hash(b"id\x1f" + id.encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


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


def check_size(size: int, limit: int, field: str | None = None) -> None:
    """Refuse a record, or a field of one, of more bytes than the limit.

    Raises:
        BadRecord: ``record_too_large``.
    """
    if size > limit:
        what = "it" if field is None else f"its {field!r}"
        detail = (
            f"{what} has {size:,} bytes, the limit is {limit:,} (limits.record_bytes); raise it, or split the record"
        )
        raise BadRecord("record_too_large", detail, field)


class Source(ABC):
    """One indexed file (or folder) of records.

    Attributes:
        name: the format's name in a config.
        record_bytes: a record of more is rejected before it is read.
        hashes: ``uint64 [records]``, see ``RecordHashes``.
        kinds: ``uint8 [records]``: ``HAS_ID``, ``NO_ID`` or ``UNREADABLE``.
        stored: names of the arrays that make up the index; none where it is not stored.
    """

    name: ClassVar[str]
    stored: ClassVar[tuple[str, ...]] = ()
    hashes: np.ndarray
    kinds: np.ndarray

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        self.path, self.record_bytes = path, record_bytes
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
            BadRecord: ``bad_json``, ``record_too_large`` and what the format itself can find wrong.
        """

    @abstractmethod
    def write(self, kept: Sequence[int], target: Path) -> None:
        """Write the kept records, unchanged, in the order given, as a new file of this format at ``target``."""

    @abstractmethod
    def _open(self) -> Any:
        """Whatever reading needs: closed with the last reference to it, and never pickled."""

    def files(self) -> list[Path]:
        """All files the records come from, in a fixed order."""
        return [self.path]

    @property
    def folder(self) -> Path:
        """Where relative image paths start unless the configuration says otherwise."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self.hashes)

    def save_index(self, file: Path) -> None:
        """Write the index, so that ``with_index`` opens the same file without reading it."""
        with atomic_path(file) as temporary, temporary.open("wb") as opened:
            arrays = {name: getattr(self, name) for name in self.stored}
            np.savez(opened, details=np.array(json.dumps(self._details())), **arrays)

    @classmethod
    def with_index(cls, path: Path, file: Path, record_bytes: int = RECORD_BYTES) -> Self:
        """The source of ``path``, with the index that ``save_index`` wrote.

        Raises:
            OSError, ValueError, LookupError, TypeError: ``file`` is no such index.
        """
        source = cls.__new__(cls)
        Source.__init__(source, path, record_bytes)
        # Opened here: numpy leaves a file open that is no archive.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            for name in cls.stored:
                setattr(source, name, arrays[name])
            source._set_details(json.loads(str(arrays["details"])))
        return source

    def _details(self) -> Any:
        """What the index holds beside arrays, as plain data."""
        return None

    def _set_details(self, details: Any) -> None:
        """Take over what ``_details`` gave."""
        if details is not None:
            raise ValueError(f"an index of {self.name} has no details")

    def close(self) -> None:
        """Close the open file; the next read opens it again."""
        self._handle = None

    def _opened(self) -> Any:
        # A forked worker must not share its parent's file position or buffers.
        if self._handle is None or self._handle_process != os.getpid():
            self._handle, self._handle_process = self._open(), os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class SpanSource(Source):
    """A file whose records are spans of bytes.

    Attributes:
        framing: bytes before the first record, between two, and after the last, in a written file.
        start: ``int64 [records]``, first byte.
        size: ``int64 [records]``, bytes.
    """

    framing: ClassVar[tuple[bytes, bytes, bytes]]

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        super().__init__(path, record_bytes)
        starts, sizes, hashes = array("q"), array("q"), RecordHashes()
        for start, size in self._spans(hashes):
            starts.append(start)
            sizes.append(size)
        self.start, self.size = np.frombuffer(starts, np.int64), np.frombuffer(sizes, np.int64)
        self.hashes, self.kinds = hashes.arrays()

    @abstractmethod
    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        """Each record's first byte and size; its hash is added to ``hashes``."""

    def raw(self, i: int) -> bytes:
        """The record's bytes as they stand in the file."""
        size = int(self.size[i])
        data = self._opened().bytes(int(self.start[i]), size)
        if len(data) != size:
            raise DataError(
                f"{self.path} changed since it was indexed: record {i + 1} is cut off; run again", self.path
            )
        return data

    def record(self, i: int) -> dict[str, Any]:
        return parse_object(self.raw_within_limit(i))

    def raw_within_limit(self, i: int) -> bytes:
        """The record's bytes.

        Raises:
            BadRecord: ``record_too_large``, before anything is read.
        """
        check_size(int(self.size[i]), self.record_bytes)
        return self.raw(i)

    def write(self, kept: Sequence[int], target: Path) -> None:
        before, between, after = self.framing
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            file.write(before)
            for n, i in enumerate(kept):
                file.write((between if n else b"") + self.raw(i))
            file.write(after)

    def _open(self) -> Any:
        return Blocks(self.path) if isinstance(self.path, RemotePath) else _Bytes(os.open(self.path, os.O_RDONLY))


class _Bytes:
    """A file read at any position; Python's own would warn when the last reference to it closes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def bytes(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the interpreter's end `os` may be gone by now; the default argument is not.
        close(self._descriptor)
