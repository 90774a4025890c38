"""What a benchmark's selector keeps within each of its budgets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ostlight.comparison.cells import file_name
from ostlight.selection.budget import Budget

KEY = "-????????"
"""What stands behind a pick's name: of what it was made."""


@dataclass(frozen=True)
class Pick:
    """One sample's part in it; ``rank`` is its place among the ``kept``, 0 is best, ``None`` where it is dropped."""

    budget: str
    rank: int | None
    kept: int


def picks_of(run: Path, budgets: list[Budget], position: int) -> list[Pick]:
    """What became of the record at this position, budget by budget; several for one where the scores were picked from
    in several ways, none for a budget that was not picked for.

    Args:
        run: folder of one selector's scores.
    """
    files = [(b.label, f) for b in budgets for f in sorted(run.glob(f"picks/{file_name(b.label)}{KEY}.npy"))]
    return [_pick(label, np.load(file), position) for label, file in files]


def _pick(label: str, kept: np.ndarray, position: int) -> Pick:
    """Args:
    kept: ``[K]`` positions, best first.
    """
    found = np.flatnonzero(kept == position)
    return Pick(label, int(found[0]) if len(found) else None, len(kept))
