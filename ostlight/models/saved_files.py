"""What a saved model's folder consists of, so that a file that was damaged since is not used as if it were right."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ostlight.data.checked_json import read_json, write_json
from ostlight.data.file_key import content_key
from ostlight.errors import DataError
from ostlight.progress import track

NAME = "saved_files.json"
"""In the folder: the SHA-256 of each file by its name. Without it a folder is taken as it is."""


def note_saved(folder: Path, names: Collection[str] | None = None) -> None:
    """Writes the list of the files that are in a folder now.

    Args:
        names: of the files; by default all but those of its subfolders.
    """
    found = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name != NAME]
    digests = {file.name: content_key(file) for file in found if names is None or file.name in names}
    write_json(folder / NAME, digests)


def check_saved(folder: Path, cure: str) -> None:
    """Checks that the files which ``note_saved`` saw are there as they were.

    Args:
        cure: what to do about the folder, for the message.

    Raises:
        DataError: one is not, or the list itself is damaged; names it.
    """
    if not (folder / NAME).exists():
        return
    damaged = _first_damaged(folder)
    if damaged is not None:
        raise DataError(
            f"{folder / damaged} is not the file that was saved there; {cure}, or, if you changed it on purpose, "
            f"remove {folder / NAME}",
            folder / damaged,
        )


def _first_damaged(folder: Path) -> str | None:
    try:
        digests = read_json(folder / NAME)
    except ValueError:
        return NAME
    for name, digest in track(digests.items(), f"checking {folder}", unit="files"):
        file = folder / name
        if not file.is_file() or content_key(file) != digest:
            return str(name)
    return None
