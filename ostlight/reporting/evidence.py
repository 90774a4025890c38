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
from ostlight.reporting.noise import beyond_noise, curvature_error, measurable
from ostlight.reporting.picks import Pick, read_picks
from ostlight.reporting.run import Run
from ostlight.selection.scores import OK

NUMBERS = ("loss", "gradient_norm", "alignment", "step_size", "cosine")
VECTORS = ("phi", "utility_by_group")
TRUTH = "defect (truth)"
"""The tag a table of the truth appears under; no selector sees it."""


@dataclass
class Evidence:
    """All scored samples of a run, N of them, by position.

    Attributes:
        ids: ``[N]``.
        position, score: ``[N]``.
        columns: ``[N]`` float64 by name: those of ``NUMBERS`` the selector left.
        phi: ``[N, W]`` float32, ``None`` without curvature columns.
        by_group: ``[N, G]`` utilities by anchor group, ``None`` without groups.
        groups: the anchor groups' names.
        tags: by tag, ``[N]`` text; empty text where a sample lacks it.
        picks: what was kept, budget by budget; empty where nothing was picked yet.
        records, rejected: of the pool.
        noted_step_size: step size in the run's notes, where the scores have no such column.
        drawn: whether ``phi`` comes from random probes and so has a sampling error; measured directions have none.
    """

    ids: list[str]
    position: np.ndarray
    score: np.ndarray
    columns: dict[str, np.ndarray]
    phi: np.ndarray | None
    by_group: np.ndarray | None
    groups: list[str]
    tags: dict[str, np.ndarray]
    picks: list[Pick]
    records: int
    rejected: int
    noted_step_size: float | None = None
    drawn: bool = True

    @classmethod
    def read(cls, run: Run) -> Evidence:
        """File by file, so that the widest columns are in memory once, in float32.

        Raises:
            DataError: no scores.
        """
        parts = sorted(run.folder.scores.glob("part-*.parquet"))
        if not parts:
            raise DataError(f"{run.folder.scores} holds no scores; run `ostlight select` first")
        pieces = [_piece(pq.read_table(part)) for part in parts]
        pieces = [piece for piece in pieces if len(piece["position"])] or pieces[:1]
        names = [n for n in pieces[0] if all(n in piece for piece in pieces)]
        data: dict[str, Any] = {n: np.concatenate([p.pop(n) for p in pieces]) for n in names if n != "tags"}
        rows = [row for piece in pieces for row in piece["tags"]]
        order = np.argsort(data["position"], kind="stable")
        if (np.diff(order) != 1).any():
            data = {name: values[order] for name, values in data.items()}
        ids = data["id"].tolist()
        by_group = data.get("utility_by_group")
        return cls(
            ids=ids,
            position=data["position"],
            score=data["score"],
            columns={n: data[n] for n in NUMBERS if n in data},
            phi=data["phi"].astype(np.float32, copy=False) if "phi" in data else None,
            by_group=by_group,
            groups=_group_names(run, by_group),
            tags=_tags([rows[k] for k in order], ids, run.defect_labels),
            picks=read_picks(run, data["position"]),
            records=sum(pq.read_metadata(part).num_rows for part in parts),
            rejected=sum(pq.read_metadata(part).num_rows for part in parts) - len(ids),
            noted_step_size=run.notes.get("step_size"),
            drawn=run.notes.get("curvature", "drawn") == "drawn",
        )

    @property
    def step_size(self) -> float:
        """The step size of the simulated steps.

        Raises:
            DataError: the run kept none.
        """
        if "step_size" in self.columns:
            return float(self.columns["step_size"][0])
        if self.noted_step_size is None:
            raise DataError("the run kept no step size, neither in its scores nor in its notes")
        return self.noted_step_size

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place(self) -> np.ndarray:
        """``[N]`` place of each sample by score, 0 is best; equal scores keep the pool's order."""
        place = np.empty(len(self), np.int64)
        place[np.lexsort((self.position, -self.score))] = np.arange(len(self))
        return place

    @cached_property
    def curvature_cost(self) -> np.ndarray | None:
        """``[N]`` what the utility lacks of the slope's promise, nats: the step's own curvature takes it."""
        if self.phi is None or "step_size" not in self.columns:
            return None
        return self.columns["step_size"] * self.columns["alignment"] - self.score

    @cached_property
    def noise(self) -> np.ndarray | None:
        """``[N]`` standard error of the utility from the sketch, nats; ``None`` where there is no sketch to err."""
        if self.phi is None or "step_size" not in self.columns or not self.drawn:
            return None
        if not measurable(self.phi.shape[1], self.probe_groups):
            return None
        return self.columns["step_size"] ** 2 / 2 * curvature_error(self.phi, self.probe_groups)

    @property
    def probe_groups(self) -> int:
        """Groups that have probes of their own."""
        return max(1, len(self.groups))

    @cached_property
    def is_utility(self) -> bool:
        """Whether the score is a difference of anchor losses in nats, so that its sign means something."""
        return self.by_group is not None or "alignment" in self.columns

    @cached_property
    def toxic(self) -> np.ndarray:
        """``[N]`` utility below 0 by more than the sketch's noise; all false for scores that are no utilities."""
        if not self.is_utility:
            return np.zeros(len(self), bool)
        if self.noise is None:
            return self.score < 0
        return beyond_noise(self.score, self.noise, self.columns["step_size"] * self.columns["alignment"])


def _piece(table: pa.Table) -> dict[str, Any]:
    table = table.filter(pc.equal(table["state"], OK))
    piece: dict[str, Any] = {"id": np.array(table["id"].to_pylist(), dtype=object)}
    piece["tags"] = [dict(row or ()) for row in table["tags"].to_pylist()]
    for name in ("position", "score", *NUMBERS):
        if name in table.column_names:
            piece[name] = table[name].to_numpy()
    for name in VECTORS:
        column = table[name].combine_chunks() if name in table.column_names else None
        if column is not None and len(column) and not column.null_count:
            flat = column.flatten().to_numpy(zero_copy_only=False)
            piece[name] = flat.astype(np.float32 if name == "phi" else np.float64).reshape(len(column), -1)
    return piece


def _group_names(run: Run, by_group: np.ndarray | None) -> list[str]:
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
        tags[TRUTH] = np.array([defect_labels.get(i, "") for i in ids], dtype=object)
    return tags
