"""What was kept of the scored samples: by a selection, or within each budget of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from ostlight.benchmarking.plan import file_name
from ostlight.reporting.run import Run

KEY = "-????????"
"""What stands behind the name of a benchmark's pick: of what it was made."""


@dataclass(frozen=True)
class Pick:
    """What was kept within one budget.

    Attributes:
        budget: its label; where the scores were picked from in several ways, with the selectors that did, or before the
            benchmark has ended the key of the pick's file.
        stratify_by: the tag, or other kind of sample, the budget was spent within.
        rank: ``[N]`` place of each scored sample among the kept, 0 is best; -1 for those dropped.
        mark: what tells it from the run's other picks in names within the page; empty for the first.
        suffix: what tells it from the run's other picks in words; empty where there are none.
    """

    budget: str
    stratify_by: str | None
    rank: np.ndarray
    mark: str = ""
    suffix: str = ""

    @property
    def kept(self) -> np.ndarray:
        """``[N]``"""
        return self.rank >= 0

    @property
    def size(self) -> int:
        return int(self.kept.sum())


def read_picks(run: Run, position: np.ndarray) -> list[Pick]:
    """A selection's own; those of a benchmark's selector, budget by budget: several for one where the scores were
    picked from in several ways, none for a budget that was not picked for.

    Args:
        position: ``[N]`` of the scored samples.
    """
    found = list(_kept(run))
    return [
        Pick(budget, stratify_by, _ranks(kept, position), str(k or ""), f" (budget {budget})" if len(found) > 1 else "")
        for k, (budget, stratify_by, kept) in enumerate(found)
    ]


def _kept(run: Run) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """Label and tag of each budget picked for, and ``[K]`` positions, best first."""
    if run.folder.selection.is_file():
        table = pq.read_table(run.folder.selection, columns=["position", "rank"], filters=[("rank", ">=", 0)])
        yield run.config.budget.label, run.config.budget.stratify_by, table.sort_by("rank")["position"].to_numpy()
        return
    for budget in run.budgets:
        files = sorted(run.path.glob(f"picks/{file_name(budget.label)}{KEY}.npy"))
        known = [file for stem in run.who_picked for file in files if file.stem == stem]
        for file in known or files:
            who = ", ".join(run.who_picked.get(file.stem, [file.stem.rpartition("-")[2]]))
            yield (
                f"{budget.label}, {who}" if len(known or files) > 1 else budget.label,
                budget.stratify_by,
                np.load(file),
            )


def _ranks(kept: np.ndarray, position: np.ndarray) -> np.ndarray:
    rank = {p: k for k, p in enumerate(kept.tolist())}
    return np.array([rank.get(p, -1) for p in position.tolist()], np.int64)
