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
from ostlight.data.numbers import whole
from ostlight.data.remote import Blocks, RemotePath
from ostlight.errors import BadRecord, DataError

RECORD_BYTES = 50_000_000
"""Limit of a record's size unless the configuration gives another."""

_SIGNS_OF_ID = (b'"id"', b"\\u006", b"\0")
"""What the bytes of a JSON object with an id have: the name, one of its letters escaped, or another encoding."""

HAS_ID, NO_ID, UNREADABLE = 0, 1, 2
"""What a record's hash is of: its own id; its content; nothing, because it cannot be read."""


def own_id(record: Any) -> str | None:
    """The record's own id as text; ``None`` where it has none (or none that can be used)."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(whole(value)) if is_number and not is_no_id(value) else None


def is_no_id(value: Any) -> bool:
    """Whether the value of an ``id`` field says that there is none."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def identity(record: Any, content: Callable[[], bytes]) -> tuple[int, int]:
    """A 64-bit hash of a record's own id or, where it has none, of its content; and which of the two.

    Indexing and reading take it alike, so that another record in the place of the one that was indexed is noticed.
    """
    id = own_id(record)
    return (_hash(content()), NO_ID) if id is None else (id_hash(id), HAS_ID)


class RecordHashes:
    """Collects a 64-bit hash of each record and what it is of: 9 bytes each, no Python objects.

    Among a million records the chance that any two hashes collide is below 1e-7.
    """

    def __init__(self) -> None:
        self._hashes, self._kinds = array("Q"), array("B")

    def add(self, identity: tuple[int, int]) -> None:
        """Add a record by its ``identity``."""
        self._append(*identity)

    def add_json(self, raw: bytes) -> None:
        """Add a record that is a JSON object."""
        if not any(sign in raw for sign in _SIGNS_OF_ID):  # spares parsing most records without an id twice
            self._append(_hash(raw.strip()), NO_ID)
            return
        try:
            self.add(identity(json.loads(raw), raw.strip))
        except (ValueError, RecursionError):
            self.add_unreadable()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes ``uint64 [records]`` and kinds ``uint8 [records]``."""
        return np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._kinds, np.uint8)

    def add_unreadable(self) -> None:
        """Add a record that cannot be read."""
        self._append(0, UNREADABLE)

    def replace(self, i: int, identity: tuple[int, int]) -> None:
        """Take another identity for record ``i``, or ``(0, UNREADABLE)``."""
        self._hashes[i], self._kinds[i] = identity

    def _append(self, hash: int, kind: int) -> None:
        self._hashes.append(hash)
        self._kinds.append(kind)


def id_hash(id: str) -> int:
    """64-bit hash of a record's own id."""
    return _hash(b"id\x1f" + id.encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} is there twice in one object; keep one")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object from its bytes.

    Raises:
        BadRecord: ``bad_json`` where it is no JSON or no object, or a name stands twice in one object: which of the
            values is meant is not known.
    """
    try:
        record = _DECODER.decode(raw.decode(json.detect_encoding(raw), "surrogatepass"))
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
            DataError: the file changed since it was indexed.
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

    def _unchanged(self, i: int, record: dict[str, Any], content: Callable[[], bytes]) -> dict[str, Any]:
        """The record, if it is the one that was indexed as ``i``.

        Raises:
            BadRecord: ``unreadable_record`` where it could not be read then.
            DataError: it is another one.
        """
        if self.kinds[i] == UNREADABLE:
            raise BadRecord("unreadable_record", "it could not be read when its file was indexed")
        if identity(record, content) != (self.hashes[i], self.kinds[i]):
            raise DataError(
                f"{self.path} changed since it was indexed: record {i + 1} is another one; run again", self.path
            )
        return record

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
        raw = self.raw_within_limit(i)
        return self._unchanged(i, parse_object(raw), raw.strip)

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
