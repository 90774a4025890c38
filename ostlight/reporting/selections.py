"""Which of the scored samples were kept: by a selection, or within each budget of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ostlight.benchmarking.plan import file_name
from ostlight.benchmarking.positions import read_positions
from ostlight.data.checked_parquet import read_parquet
from ostlight.errors import reading_back
from ostlight.pipeline.run_folder import SELECT_AGAIN
from ostlight.reporting.finished_run import FinishedRun

FINGERPRINT = "-????????"
"""Ends the name of a benchmark's selection file."""


@dataclass(frozen=True)
class Selection:
    """What was kept within one budget.

    Attributes:
        budget: its label; where several selectors used the same scores and budget, with their names (with the
            fingerprint of the file while the benchmark is unfinished).
        stratify_by: the tag within whose values the budget was spent.
        rank: ``[N]`` rank of each scored sample among all that were kept, 0 is best; -1 for dropped ones.
        unscored: how many were kept without a score.
        key: distinguishes the run's selections in names within the page; empty for the first.
        suffix: distinguishes them in words, as `` (budget 20%)``; empty where there is only one.
    """

    budget: str
    stratify_by: str | None
    rank: np.ndarray
    unscored: int = 0
    key: str = ""
    suffix: str = ""

    @property
    def kept(self) -> np.ndarray:
        """``[N]`` whether each scored sample was kept."""
        return self.rank >= 0

    @property
    def scored(self) -> int:
        """How many were kept with a score."""
        return int(self.kept.sum())

    @property
    def size(self) -> int:
        """How many were kept, those without a score among them."""
        return self.scored + self.unscored


def read_selections(run: FinishedRun, position: np.ndarray) -> list[Selection]:
    """Reads what a run kept, in the order of its budgets; none for a budget without a selection.

    Args:
        position: ``[N]`` positions of the scored samples, ascending.
    """
    kept_by_budget = list(_kept_positions(run))
    selections = []
    for k, (budget, stratify_by, kept) in enumerate(kept_by_budget):
        rank = np.full(len(position), -1, np.int64)
        is_scored = np.isin(kept, position)
        rank[np.searchsorted(position, kept[is_scored])] = np.flatnonzero(is_scored)
        suffix = f" (budget {budget})" if len(kept_by_budget) > 1 else ""
        selections.append(Selection(budget, stratify_by, rank, int((~is_scored).sum()), str(k or ""), suffix))
    return selections


def _kept_positions(run: FinishedRun) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """Label and tag of each budget, and the positions kept, best first."""
    if run.folder.selection.is_file():
        table = read_parquet(run.folder.selection, SELECT_AGAIN, ["position", "rank"], [("rank", ">=", 0)])
        with reading_back(run.folder.selection, SELECT_AGAIN):
            positions = table.sort_by("rank")["position"].to_numpy()
        (budget,) = run.budgets
        yield budget.label, budget.stratify_by, positions
        return
    selectors = run.selectors_by_selection
    for budget in run.budgets:
        files = sorted(run.path.glob(f"selections/{file_name(budget.label)}{FINGERPRINT}.npy"))
        for stem in selectors:
            if stem.startswith(f"{file_name(budget.label)}-") and stem not in {file.stem for file in files}:
                run.missing.append(f"Selection: {stem}.npy does not exist; `ostlight benchmark` makes it again.")
        files = [file for stem in selectors for file in files if file.stem == stem] or files
        for file in files:
            made_by = ", ".join(selectors.get(file.stem, [file.stem.rpartition("-")[2]]))
            label = f"{budget.label}, {made_by}" if len(files) > 1 else budget.label
            with reading_back(file, "`ostlight benchmark` makes the selection again"):
                positions = read_positions(file)
            yield label, budget.stratify_by, positions


def cutoff_score(score: np.ndarray, kept: int) -> float:
    """The score half-way between the last of the ``kept`` highest and the next."""
    ordered = np.sort(score)[::-1]
    if not 0 < kept < len(ordered):
        return float(ordered[-1] if kept else ordered[0]) if len(ordered) else 0.0
    return float(ordered[kept - 1] + ordered[kept]) / 2
