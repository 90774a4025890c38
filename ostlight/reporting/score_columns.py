"""The score table as columns: everything the report says about samples is computed from these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.checked_parquet import check_parquet
from ostlight.errors import DataError, reading_back
from ostlight.reporting.finished_run import EXTRA_COLUMNS, FinishedRun
from ostlight.reporting.number_format import UnitScale
from ostlight.reporting.selections import Selection, cutoff_score, read_selections
from ostlight.selection.score_files import CURE
from ostlight.selection.scores import Scores

COLUMNS = ["position", "id", "state", "tags", "score", "utility_by_group", *EXTRA_COLUMNS]
"""Columns that are read, as far as the table has them."""
DEFECT = "defect label"
"""Name under which the table of known defects appears among the tags; no selector sees it."""


@dataclass
class ScoreColumns:
    """All scored samples of a run, N of them, by position.

    Attributes:
        run: whose scores these are.
        ids: ``[N]``.
        position, score: ``[N]``.
        extra: ``[N]`` float64 by name: those of ``EXTRA_COLUMNS`` that the selector stored; where scores are no
            utilities only the loss, since names like ``cosine`` may then mean anything.
        by_group: ``[N, G]`` utilities by anchor group; ``None`` without groups.
        groups: names of the anchor groups.
        tags: ``[N]`` text by tag; empty text where a sample lacks it.
        selections: what was kept within each budget; empty before the first selection.
        records, rejected: counts of the pool.
        has_curvature: whether the selector stored ``phi``, its sketch of the curvature.
    """

    run: FinishedRun
    ids: list[str]
    position: np.ndarray
    score: np.ndarray
    extra: dict[str, np.ndarray]
    by_group: np.ndarray | None
    groups: list[str]
    tags: dict[str, np.ndarray]
    selections: list[Selection]
    records: int
    rejected: int
    has_curvature: bool = False

    @classmethod
    def read(cls, run: FinishedRun) -> ScoreColumns:
        """Reads the columns that the report shows; ``phi``, the widest, is none of them.

        Raises:
            DataError: the run has no scores.
        """
        parts = sorted(run.folder.scores.glob("part-*.parquet"))
        if not parts:
            raise DataError(f"{run.folder.scores} holds no scores; run `ostlight select` first")
        tables = []
        for part in parts:
            with reading_back(part, CURE), pq.ParquetFile(part) as file:
                check_parquet(part)
                tables.append(file.read(COLUMNS))
        table = pa.concat_tables(tables, promote_options="permissive").sort_by("position")
        if run.pool is not None and len(table) < len(run.pool):
            without = f"{len(run.pool) - len(table):,} of {len(run.pool):,} records"
            run.missing.append(f"Scores: {run.folder.scores} has none of {without}; what made the folder scores them.")
        scores = Scores(table)
        ids, by_group = scores.ids, None
        if "utility_by_group" in scores and len(scores):
            if not run.scores_utility:
                run.missing.append("Utilities by anchor group: the selector does not say that its score is a utility.")
            elif without_groups := scores.table["utility_by_group"].null_count:
                run.missing.append(f"Utilities by anchor group: {without_groups:,} scored samples have none.")
            else:
                by_group = scores.column("utility_by_group")
        names = EXTRA_COLUMNS if run.scores_utility else ("loss",)
        return cls(
            run=run,
            ids=ids,
            position=scores.positions,
            score=scores.score,
            extra={name: scores.column(name) for name in names if name in scores},
            by_group=by_group,
            groups=_group_names(run, by_group),
            tags=_tags([dict(row or ()) for row in scores.table["tags"].to_pylist()], ids, _defects(run, ids)),
            selections=read_selections(run, scores.positions),
            records=len(table),
            rejected=len(table) - len(ids),
            has_curvature="phi" in run.extra_columns,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place(self) -> np.ndarray:
        """``[N]`` rank of each sample by score, 0 is best; equal scores keep the pool's order."""
        place = np.empty(len(self), np.int64)
        place[np.lexsort((self.position, -self.score))] = np.arange(len(self))
        return place

    @cached_property
    def first_order_utility(self) -> np.ndarray | None:
        """``[N]`` ``step size * <g_i, g_V>``, nats: the utility without its curvature term."""
        if not {"step_size", "alignment"} <= self.extra.keys():
            return None
        utility: np.ndarray = self.extra["step_size"] * self.extra["alignment"]
        return utility

    @cached_property
    def curvature_cost(self) -> np.ndarray | None:
        """``[N]`` first-order utility minus utility, nats."""
        if not self.has_curvature or self.first_order_utility is None:
            return None
        cost: np.ndarray = self.first_order_utility - self.score
        return cost

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """``[N]`` numbers that a sample is shown with, by name, as far as the run stored them; utilities in nats."""
        columns = {
            "score": self.score,
            "first_order_utility": self.first_order_utility,
            "curvature_cost": self.curvature_cost,
            "cosine": self.extra.get("cosine"),
            "loss": self.extra.get("loss"),
        }
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def is_utility(self) -> bool:
        """Whether the score is a difference of anchor losses in nats, so that its sign means something."""
        return self.run.scores_utility

    @cached_property
    def scale(self) -> UnitScale:
        """The unit that the scores are shown in."""
        return UnitScale.of(self.score, self.is_utility)

    @cached_property
    def margins(self) -> list[np.ndarray | None]:
        """``cutoff_margins`` of each selection."""
        return [self.cutoff_margins(selection) for selection in self.selections]

    def cutoff_margins(self, selection: Selection) -> np.ndarray | None:
        """``[N]`` score minus the budget's cutoff, which each stratum of a stratified budget has for itself.

        ``None`` where the kept are not the highest scores (a set objective, a random subset): there is no cutoff.
        """
        margins = np.zeros(len(self))
        strata = self.tags.get(selection.stratify_by) if selection.stratify_by else None
        strata = np.zeros(len(self)) if strata is None else strata
        for stratum in set(strata.tolist()):
            rows = np.flatnonzero(strata == stratum)
            kept, dropped = (self.score[rows[selection.kept[rows] == side]] for side in (True, False))
            if len(kept) and len(dropped) and kept.min() < dropped.max():
                return None
            margins[rows] = self.score[rows] - cutoff_score(self.score[rows], int(selection.kept[rows].sum()))
        return margins

    @cached_property
    def toxic(self) -> np.ndarray:
        """``[N]`` whether the utility is below 0; all false for scores that are no utilities."""
        return self.score < 0 if self.is_utility else np.zeros(len(self), bool)


def _group_names(run: FinishedRun, by_group: np.ndarray | None) -> list[str]:
    if by_group is None:
        return []
    noted = [str(name) for name in run.notes.get("groups", [])]
    if len(noted) == by_group.shape[1]:
        return noted
    run.missing.append("Names of the anchor groups: the run's notes do not hold them, so they are numbered.")
    return [f"group {k + 1}" for k in range(by_group.shape[1])]


def _defects(run: FinishedRun, ids: list[str]) -> dict[str, str]:
    """The run's defect labels; none, and a sentence in ``missing``, where they are of other records."""
    labels = run.defect_labels
    if ids and labels and labels.keys().isdisjoint(ids):
        named = f"such as {next(iter(labels))!r}) is that of a scored record (such as {ids[0]!r}"
        run.missing.append(f"Defects: no id of the defect labels ({named}).")
        return {}
    return labels


def _tags(rows: list[dict[str, str]], ids: list[str], defect_labels: dict[str, str]) -> dict[str, np.ndarray]:
    names = sorted({name for row in rows for name in row})
    tags = {name: np.array([row.get(name, "") for row in rows], dtype=object) for name in names}
    if defect_labels:
        tags[DEFECT] = np.array([defect_labels.get(i, "") for i in ids], dtype=object)
    return tags
