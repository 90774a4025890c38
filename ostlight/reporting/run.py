"""A finished run as its folder tells it: what is there, and in words what is not."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from ostlight.config import load_config
from ostlight.config.budget import Budget
from ostlight.config.schema import Anchors, Config, Data
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine, Row
from ostlight.digitmath.build import Files
from ostlight.errors import DataError, OstlightError
from ostlight.models.cost import StageCost
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.notes import read_notes
from ostlight.selection.scores import REJECTED

D = TypeVar("D", Data, Anchors)

CLEAN = (None, "", "clean")
"""What a truth table calls a record without a defect."""


@dataclass
class Run:
    """A run folder, read only.

    Attributes:
        folder: where its files lie.
        config: as the run resolved it.
        missing: one sentence for each part of the report that the folder holds nothing for.
    """

    folder: RunFolder
    config: Config
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises:
        DataError: the folder is not there, or is no run folder.
        ConfigError: its ``config.yaml`` is not one of this version's.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            kind = "a file" if path.is_file() else "no run folder: it holds no config.yaml"
            what = f"is {kind}" if path.exists() else "does not exist"
            raise DataError(f"{path} {what}; name a folder that `ostlight select` or `ostlight benchmark` wrote")
        config = load_config(path / "config.yaml")
        return cls(RunFolder(path, config, write=False), config)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def is_benchmark(self) -> bool:
        return (self.path / "results.jsonl").is_file()

    @cached_property
    def notes(self) -> dict[str, Any]:
        """Facts the selector kept of the run (``Setting.note``)."""
        return read_notes(self.path / "selector")

    @cached_property
    def home(self) -> Run | None:
        """The benchmark whose selector it is."""
        try:
            return Run.open(self.path.parent.parent)
        except OstlightError:
            return None

    @cached_property
    def budgets(self) -> list[Budget]:
        """Its own, or those of the benchmark whose selector it is."""
        benchmark = self.home.config.benchmark if self.home else None
        return list(benchmark.budgets) if benchmark else [self.config.budget]

    @cached_property
    def who_picked(self) -> dict[str, list[str]]:
        """The selectors of a finished benchmark that kept what a file of ``picks/`` holds, by its stem."""
        found = defaultdict[str, list[str]](list)
        if self.home is None:
            return found
        for row in self.home._whose_scores:
            of_this = self.home.path / row["scores"] == self.path and "pick" in row
            if of_this and row["selector"] not in found[row["pick"]]:
                found[row["pick"]].append(row["selector"])
        return dict(found)

    @cached_property
    def pick_notes(self) -> dict[str, dict[str, Any]]:
        """Facts noted while a budget was picked (``SelectionContext.note``), by the budget's label; of the last
        time."""
        entries = [e.more for e in self.cost_log if e.stage == "select"]
        return {more["budget"]: more.get("noted", {}) for more in entries if "budget" in more}

    @cached_property
    def cost_log(self) -> list[StageCost]:
        """What the run paid; a benchmark's warm-ups stand in folders of their own."""
        warmed = [RunFolder(p.parent, self.config, write=False) for p in self.path.glob("proxies/*/cost_log.jsonl")]
        return [entry for folder in (*warmed, self.folder) for entry in folder.cost_log.read()]

    @cached_property
    def scored(self) -> list[Run]:
        """The runs with scores: this one, or the selectors of a benchmark, those with the most evidence first; without
        what an earlier state of the code left, where the benchmark came to an end."""
        if any(self.folder.scores.glob("part-*.parquet")):
            return [self]
        folders = sorted({p.parent.parent for p in self.path.glob("selectors/*/scores/part-*.parquet")})
        told = {self.path / row["scores"] for row in self._whose_scores}
        runs = [Run.open(folder) for folder in folders if folder in told or not told]
        return sorted(runs, key=lambda run: -len(run.evidence_columns))

    @cached_property
    def _whose_scores(self) -> list[dict[str, Any]]:
        file = self.folder.scored
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    @cached_property
    def variants_scored(self) -> dict[str, list[str]]:
        """The variants of a benchmark that a folder of scores was made for, by its path within; empty without any."""
        found = defaultdict[str, list[str]](list)
        for row in self._whose_scores:
            if row["variant"] and row["variant"] not in found[row["scores"]]:
                found[row["scores"]].append(row["variant"])
        return dict(found)

    @cached_property
    def evidence_columns(self) -> set[str]:
        """Columns of the first score file that hold more than a number a sample or are not the framework's."""
        part = min(self.folder.scores.glob("part-*.parquet"))
        return set(pq.read_schema(part).names) & {
            "phi",
            "utility_by_group",
            "alignment",
            "cosine",
            "loss",
            "gradient_norm",
        }

    @cached_property
    def quarantine(self) -> Quarantine:
        """Of all stages; of a benchmark's selector, which writes none, what its scores tell: no file and number."""
        if self.folder.quarantine.is_file():
            return Quarantine.read(self.folder.quarantine)
        if not any(self.folder.scores.glob("part-*.parquet")):
            return Quarantine()
        columns = ["position", "id", "reason", "field", "detail"]
        table = pq.read_table(self.folder.scores, columns=columns, filters=[("state", "=", REJECTED)])
        return Quarantine(Row(**row, file="", record=0, stage="score") for row in table.to_pylist())

    @cached_property
    def pool(self) -> Pool | None:
        """The records themselves; ``None``, and a line in ``missing``, where they cannot be opened any more."""
        data = self.located(self.config.pool, "pool")
        try:
            if data.path is None:
                raise DataError("the configuration names no pool")
            return Pool.open(data.path, format=data.format, image_root=data.image_root)
        except (OstlightError, OSError) as error:
            self.missing.append(f"Pictures and texts: the pool cannot be opened ({error}).")
            return None

    def located(self, data: D, part: str) -> D:
        """The setting with its path as it can be opened now: the run may have been made in another folder, or
        moved."""
        if data.path is None:
            built = getattr(Files.in_folder(self.path / "data"), part, None)
            return replace(data, path=str(built)) if built is not None and built.exists() else data
        root = data.image_root
        return replace(data, path=self._found(data.path), image_root=None if root is None else self._found(root))

    def _found(self, said: str) -> str:
        """A path relative to where the run was started, seen from here."""
        for start in (Path(), *self.path.resolve().parents):
            if (start / said).exists():
                return str(start / said)
        return said

    @cached_property
    def defect_labels(self) -> dict[str, str]:
        """Defect by id, ``clean`` among them, where the run has a table of the truth; else empty."""
        said = self.config.benchmark.defect_labels if self.config.benchmark else None
        beside = Path(self._found(self.config.pool.path)).parent if self.config.pool.path else self.path / "data"
        places = [Path(self._found(said))] if said else [self.path / "data", beside]
        for place in places:
            file = place / "defect_labels.parquet" if place.is_dir() else place
            if file.is_file():
                table = pq.read_table(file, columns=["id", "defect"])
                rows = zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True)
                return {i: "clean" if d in CLEAN else d for i, d in rows}
        return {}
