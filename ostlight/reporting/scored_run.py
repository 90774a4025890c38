"""A scored run with everything that is derived from its scores: what the page, ``explain`` and ``sources`` share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ostlight.errors import DataError
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.number_format import UnitScale
from ostlight.reporting.sample_lists import cutoff_margins
from ostlight.reporting.score_columns import ScoreColumns


@dataclass
class ScoredRun:
    """A run with scores."""

    run: FinishedRun
    scores: ScoreColumns

    @classmethod
    def read(cls, run: FinishedRun) -> ScoredRun:
        return cls(run, ScoreColumns.read(run))

    @cached_property
    def scale(self) -> UnitScale:
        return UnitScale.of(self.scores.score, self.scores.is_utility)

    @cached_property
    def margins(self) -> list[np.ndarray | None]:
        """``cutoff_margins`` of each selection."""
        return [cutoff_margins(self.scores, selection) for selection in self.scores.selections]


def open_scored(path: str | Path) -> FinishedRun:
    """Opens the run of a folder that has scores; of a benchmark's selectors the one with the most extra columns.

    Raises:
        DataError: no run folder, or one without scores.
    """
    scored = FinishedRun.open(path).scored_runs
    if not scored:
        raise DataError(f"{path} holds no scores; run `ostlight select` first")
    return scored[0]
