"""Facts of a run that belong to no single sample, kept beside the scores for the report: ``selector/notes.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ostlight.data.checked_json import read_json, write_json
from ostlight.errors import SelectorError, reading_back
from ostlight.ranks import is_first_rank

FILE = "notes.json"
CURE = "remove it: the report then lacks what it holds, until the pool is scored again"
PRECONDITIONER = "preconditioner"
"""Name of the fact which file beside the proxy holds the factors of the step."""

UTILITY = "score_is_utility"
"""Name of the fact that the score is a utility: where ``Selector.scores_utility``, unless ``setup`` notes another."""


def write_note(folder: Path, name: str, value: Any) -> None:
    """Adds one fact to the notes, on the first rank only; a fact of the same name is replaced.

    Args:
        folder: a run's ``selector`` folder.
        name: of the fact, such as ``step_size``.
        value: plain data that JSON can hold.

    Raises:
        SelectorError: the value is not plain data, or holds NaN or infinity, which JSON does not know.
    """
    check_note(name, value)
    if is_first_rank():
        notes = read_notes(folder) | {name: value}
        write_json(folder / FILE, dict(sorted(notes.items())))


def remove_notes(folder: Path) -> None:
    """Removes all facts of a run that was not finished, on the first rank only."""
    if is_first_rank():
        (folder / FILE).unlink(missing_ok=True)


def check_note(name: str, value: Any) -> None:
    """Checks that a value can be written as JSON.

    Raises:
        SelectorError: the value is not plain data, or holds NaN or infinity.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SelectorError(
            f"the note {name!r} is no JSON ({error}): use numbers, text, lists and dicts, and null for what is unknown"
        ) from error


def read_notes(folder: Path) -> dict[str, Any]:
    """All facts noted in a run's ``selector`` folder; none where the selector noted nothing.

    Raises:
        DataError: the file is there and is no JSON object.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    with reading_back(file, CURE):
        return read_json(file)
