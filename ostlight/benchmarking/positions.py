"""The positions that a selection of a benchmark keeps: ``.npy``, with a digest of them in the JSON file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.data.checked_json import read_json

POSITIONS = "positions"
"""Key of the digest."""


def digest_of(positions: np.ndarray) -> str:
    """Returns the digest of whole numbers in their order."""
    return hashlib.sha256(positions.tobytes()).hexdigest()[:16]


def read_positions(file: Path, facts: Mapping[str, Any] | None = None) -> np.ndarray:
    """Returns the positions in a file, best first.

    Args:
        file: ``.npy``.
        facts: what the JSON file beside it holds; by default it is read. Where there is none, as long as the selection
            is not finished, the positions are taken as they are.

    Raises:
        OSError, ValueError, KeyError: the file is missing, or one of both is damaged. To be called inside
            ``ostlight.errors.reading_back`` or ``read_if_whole``.
    """
    beside = file.with_suffix(".json")
    if facts is None and beside.exists():
        facts = read_json(beside)
    positions: np.ndarray = np.load(file)
    if facts is not None and digest_of(positions) != facts[POSITIONS]:
        raise ValueError("the positions are not those that were written")
    return positions
