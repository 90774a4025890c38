"""The nearest known name for a mistyped one, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def did_you_mean(given: object, known: Iterable[str], most: int = 1) -> str:
    """Returns ``"did you mean 'NAME'? "``, with up to ``most`` names, or ``""`` where none of ``known`` is near."""
    near = difflib.get_close_matches(str(given), list(known), n=most)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def nearest_path(missing: Path, folders: bool = False) -> Path | None:
    """Returns what lies beside the missing file or folder under the most similar name; ``None`` where nothing is near.

    Args:
        missing: the path that does not exist.
        folders: only folders come into question.
    """
    there: list[str] = []
    with suppress(OSError):
        there = [file.name for file in missing.parent.iterdir() if not folders or file.is_dir()]
    near = difflib.get_close_matches(missing.name, there, n=1)
    return missing.parent / near[0] if near else None
