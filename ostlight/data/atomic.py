"""A file or a folder appears whole under its name, or not at all."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

TOKEN_LENGTH = 12

SHARED_TOKEN = "0" * TOKEN_LENGTH
"""For a temporary file that several processes must name alike."""

LEFTOVER = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{{TOKEN_LENGTH}}}\.(?P<state>tmp|new|old)(\.[^.]+)?")
"""Names of temporary files and folders. A folder that takes the place of another is ``new`` when it is finished, and
the other one ``old``."""


def temporary_path(path: Path, token: str | None = None) -> Path:
    """Returns a name beside ``path`` for what is not finished; ``sweep`` removes what a killed process leaves there."""
    return path.with_name(f".{path.stem}.{token or _new_token()}.tmp{path.suffix}")


def _new_token() -> str:
    return uuid.uuid4().hex[:TOKEN_LENGTH]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` when the block ends without an error.

    The temporary file lies in the same folder (a rename across file systems is not atomic) and keeps the suffix,
    because many writers choose their format by it. Missing parent folders are made. On an error the temporary file is
    removed and an older file at ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to write into; it takes the place of ``path`` when the block ends without an error.

    An older folder at ``path`` is there until then, and gone as a whole afterwards. On Linux's own file systems the two
    are exchanged in one step. Elsewhere (NFS, macOS) there is a moment without either: a reader may find no folder, and
    where the process is killed in it, ``sweep`` puts the new one there. On an error the older folder stays.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{_new_token()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for parent, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(parent) / name)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    """Or a power cut after the rename could leave an empty file under the name."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _replace_folder(finished: Path, path: Path) -> None:
    if not path.exists():
        finished.rename(path)
    elif not _exchange(finished, path):
        new, old = finished.with_suffix(".new"), finished.with_suffix(".old")
        finished.rename(new)
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)


AT_FDCWD, RENAME_EXCHANGE = -100, 2


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; returns whether the system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return renameat2 is not None and renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


def sweep(folder: Path, kept: Collection[str] = ()) -> list[Path]:
    """Removes what killed processes have left unfinished, and puts a folder in its place whose replacement was broken
    off between two renames. No other process may be writing there.

    Args:
        kept: names of folders directly in ``folder`` that are not looked into.

    Returns:
        What was removed or put in its place.
    """
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in kept]
        # New before old: where both are there, the new one is whole.
        for name in sorted([*folders, *files]):
            match = LEFTOVER.fullmatch(name)
            if match is None:
                continue
            path = Path(parent) / name
            found.append(path)
            place = path.with_name(match["name"])
            if match["state"] != "tmp" and not place.exists():
                path.rename(place)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        folders[:] = [name for name in folders if LEFTOVER.fullmatch(name) is None]
    return found
