"""Where the records of a file are, kept in the run folder: built once, and then opened without reading the file."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ostlight.data.formats import FORMATS, Source
from ostlight.data.remote import RemotePath

log = logging.getLogger(__name__)

VERSION = 2
"""Of what indexes hold; another one is built anew."""


def open_indexed(path: Path, format: str | None, record_bytes: int, read_as: str, folder: Path) -> Source | None:
    """Returns a file's records by the index that ``folder`` holds; ``None`` where it holds none.

    An index belongs to one state of the file: its place, size and time of modification, or the version that a server
    gives it.

    Args:
        format: a name of ``FORMATS``; ``None`` takes what was recognized.
        record_bytes: a record of more is rejected before it is read.
        read_as: how its records are read, as text; what was found out about the file holds for this alone.
        folder: of the indexes.

    Raises:
        OSError: the file cannot be asked for its state.
    """
    for file in sorted(folder.glob(f"{_key(path, format, read_as)}.*.npz")):
        try:
            return FORMATS[file.name.split(".")[1]].with_index(path, file, record_bytes)
        except MemoryError:
            raise
        except Exception as error:  # zipfile's and zlib's errors have no base of their own
            log.warning(f"{file} is damaged ({type(error).__name__}: {error}); the index is built again")
    return None


def store_index(source: Source, format: str | None, read_as: str, folder: Path) -> None:
    """Stores the index of a file in ``folder``, which is made if missing, for ``open_indexed``."""
    key = _key(source.path, format, read_as)
    if source.stored and key:
        folder.mkdir(parents=True, exist_ok=True)
        source.save_index(folder / f"{key}.{source.name}.npz")


def _key(path: Path, format: str | None, read_as: str) -> str:
    """Name of the index of a file as it is now; empty where nothing tells one state of the file from another."""
    if isinstance(path, RemotePath):
        state = path.version()
    else:
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}" if path.is_file() else ""
    named = f"{VERSION} {path.absolute()} {state} {format} {read_as}"
    return hashlib.sha256(named.encode()).hexdigest()[:32] if state else ""
