"""A folder that is replaced as a whole, and only if an earlier call wrote it."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostlight.data.atomic import atomic_folder
from ostlight.errors import DataError

MANIFEST = ".ostlight-export.json"
"""Lists the files of an export, so that the next one knows what it may replace."""


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to write to; it takes the place of ``folder`` when the block ends without an
    error. On an error it is removed, and what was there stays as it was.

    Raises:
        DataError: ``folder`` is a file, or holds a file that no export has written; the disk refuses.
    """
    folder = Path(folder).absolute()
    refuse_foreign(folder)
    try:
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of exports that were killed
            shutil.rmtree(left, ignore_errors=True)
        with atomic_folder(folder) as new:
            yield new
            refuse_foreign(folder)  # it may have been filled meanwhile
            files = sorted(file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file())
            (new / MANIFEST).write_text(json.dumps(files, indent=0), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}", folder) from error


def refuse_foreign(folder: Path) -> None:
    """Checks that a folder is not there, is empty, or holds only what an export wrote.

    Raises:
        DataError: it holds something else; names the first such file.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(f"{folder} is no folder of its own; name another with --out", folder)
    there = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    foreign = [name for name in there if name not in {*_written(folder), MANIFEST}]
    if foreign:
        raise DataError(
            f"{folder} holds what no export wrote ({foreign[0]}{f' and {len(foreign) - 1} more' * (len(foreign) > 1)}),"
            " and would be replaced whole; move it, or name another folder with --out",
            folder / foreign[0],
        )


def _written(folder: Path) -> set[str]:
    try:
        return set(map(str, json.loads((folder / MANIFEST).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        return set()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
