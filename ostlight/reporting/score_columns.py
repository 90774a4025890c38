"""The score table as columns: everything the report says about samples is computed from these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.errors import DataError
from ostlight.reporting.finished_run import EXTRA_COLUMNS, VECTOR_COLUMNS, FinishedRun
from ostlight.reporting.selections import Selection, read_selections
from ostlight.reporting.sketch_noise import beyond_noise, curvature_error, measurable
from ostlight.selection.scores import OK

DEFECT = "defect (truth)"
"""Name under which the table of known defects appears among the tags; no selector sees it."""


@dataclass
class ScoreColumns:
    """All scored samples of a run, N of them, by position.

    Attributes:
        ids: ``[N]``.
        position, score: ``[N]``.
        extra: ``[N]`` float64 by name: those of ``EXTRA_COLUMNS`` that the selector stored.
        phi: ``[N, W]`` float32 curvature sketch; ``None`` without one.
        by_group: ``[N, G]`` utilities by anchor group; ``None`` without groups.
        groups: names of the anchor groups.
        tags: ``[N]`` text by tag; empty text where a sample lacks it.
        selections: what was kept within each budget; empty before the first selection.
        records, rejected: counts of the pool.
        is_sampled: whether ``phi`` comes from random probes and so has a sampling error; measured directions have none.
    """

    ids: list[str]
    position: np.ndarray
    score: np.ndarray
    extra: dict[str, np.ndarray]
    phi: np.ndarray | None
    by_group: np.ndarray | None
    groups: list[str]
    tags: dict[str, np.ndarray]
    selections: list[Selection]
    records: int
    rejected: int
    is_sampled: bool = True

    @classmethod
    def read(cls, run: FinishedRun) -> ScoreColumns:
        """Reads file by file, so that the widest columns are in memory once, in float32.

        Raises:
            DataError: the run has no scores.
        """
        parts = sorted(run.folder.scores.glob("part-*.parquet"))
        if not parts:
            raise DataError(f"{run.folder.scores} holds no scores; run `ostlight select` first")
        pieces = [_read_part(pq.read_table(part)) for part in parts]
        pieces = [piece for piece in pieces if len(piece["position"])] or pieces[:1]
        names = [n for n in pieces[0] if all(n in piece for piece in pieces)]
        data: dict[str, Any] = {n: np.concatenate([p.pop(n) for p in pieces]) for n in names if n != "tags"}
        rows = [row for piece in pieces for row in piece["tags"]]
        order = np.argsort(data["position"], kind="stable")
        if (np.diff(order) != 1).any():
            data = {name: values[order] for name, values in data.items()}
        ids = data["id"].tolist()
        by_group = data.get("utility_by_group")
        records = sum(pq.read_metadata(part).num_rows for part in parts)
        return cls(
            ids=ids,
            position=data["position"],
            score=data["score"],
            extra={n: data[n] for n in EXTRA_COLUMNS if n in data},
            phi=data["phi"].astype(np.float32, copy=False) if "phi" in data else None,
            by_group=by_group,
            groups=_group_names(run, by_group),
            tags=_tags([rows[k] for k in order], ids, run.defect_labels),
            selections=read_selections(run, data["position"]),
            records=records,
            rejected=records - len(ids),
            is_sampled=run.notes.get("curvature") != "measured",
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
        if self.phi is None or self.first_order_utility is None:
            return None
        cost: np.ndarray = self.first_order_utility - self.score
        return cost

    @cached_property
    def noise(self) -> np.ndarray | None:
        """``[N]`` standard error of the utility due to the random probes, nats; ``None`` without random probes."""
        if self.phi is None or "step_size" not in self.extra or not self.is_sampled:
            return None
        if not measurable(self.phi.shape[1], self.probe_groups):
            return None
        error: np.ndarray = self.extra["step_size"] ** 2 / 2 * curvature_error(self.phi, self.probe_groups)
        return error

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """``[N]`` numbers that a sample is shown with, by name, as far as the run stored them; utilities in nats."""
        columns = {
            "score": self.score,
            "noise": self.noise,
            "first_order_utility": self.first_order_utility,
            "curvature_cost": self.curvature_cost,
            "cosine": self.extra.get("cosine"),
            "loss": self.extra.get("loss"),
        }
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def probe_groups(self) -> int:
        """Number of anchor groups with probes of their own."""
        return max(1, len(self.groups))

    @cached_property
    def is_utility(self) -> bool:
        """Whether the score is a difference of anchor losses in nats, so that its sign means something."""
        return self.by_group is not None or "alignment" in self.extra

    @cached_property
    def toxic(self) -> np.ndarray:
        """``[N]`` whether the utility is below 0 by more than its noise; all false for scores that are no utilities."""
        if not self.is_utility:
            return np.zeros(len(self), bool)
        if self.noise is None:
            return self.score < 0
        return beyond_noise(self.score, self.noise, self.first_order_utility)


def _read_part(table: pa.Table) -> dict[str, Any]:
    """Columns of one score file's scored rows; vectors as 2-D arrays, tags as one dict a row."""
    table = table.filter(pc.equal(table["state"], OK))
    columns: dict[str, Any] = {"id": np.array(table["id"].to_pylist(), dtype=object)}
    columns["tags"] = [dict(row or ()) for row in table["tags"].to_pylist()]
    for name in ("position", "score", *EXTRA_COLUMNS):
        if name in table.column_names:
            columns[name] = table[name].to_numpy()
    for name in VECTOR_COLUMNS:
        column = table[name].combine_chunks() if name in table.column_names else None
        if column is not None and len(column) and not column.null_count:
            flat = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.astype(np.float32 if name == "phi" else np.float64).reshape(len(column), -1)
    return columns


def _group_names(run: FinishedRun, by_group: np.ndarray | None) -> list[str]:
    if by_group is None:
        return []
    noted = [str(name) for name in run.notes.get("groups", [])]
    if len(noted) == by_group.shape[1]:
        return noted
    run.missing.append("Names of the anchor groups: the run's notes do not hold them, so they are numbered.")
    return [f"group {k + 1}" for k in range(by_group.shape[1])]


def _tags(rows: list[dict[str, str]], ids: list[str], defect_labels: dict[str, str]) -> dict[str, np.ndarray]:
    names = sorted({name for row in rows for name in row})
    tags = {name: np.array([row.get(name, "") for row in rows], dtype=object) for name in names}
    if defect_labels:
        tags[DEFECT] = np.array([defect_labels.get(i, "") for i in ids], dtype=object)
    return tags
