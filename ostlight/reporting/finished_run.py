"""A finished run, read from its folder; what the folder lacks is listed for the reader."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from ostlight.benchmarking.defect_labels import CLEAN, read_defect_labels
from ostlight.benchmarking.files import DEPENDENCY
from ostlight.config import load_config
from ostlight.config.budget import Budget
from ostlight.config.schema import Benchmark, Config, Data
from ostlight.data.checked_parquet import check_parquet
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine, Row
from ostlight.data.sample import Sample
from ostlight.digitmath.build import Files
from ostlight.errors import BadRecord, DataError, OstlightError, reading_back
from ostlight.models.cost import StageCost
from ostlight.models.saved_files import check_saved
from ostlight.pipeline.lock import in_use_by
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.selection_file import read_settings
from ostlight.selection.notes import UTILITY, read_notes
from ostlight.selection.registry import find, names
from ostlight.selection.score_files import CURE, ScoreFiles

log = logging.getLogger(__name__)

D = TypeVar("D", bound=Data)

EXTRA_COLUMNS = ("loss", "gradient_norm", "alignment", "step_size", "cosine")
"""Numbers a selector may store beside the score."""
VECTOR_COLUMNS = ("phi", "utility_by_group")
"""Vectors it may store."""


@dataclass
class FinishedRun:
    """A run folder, read only.

    Attributes:
        folder: paths of its files.
        config: the resolved configuration of the run.
        missing: one sentence for each part of the report that cannot be shown.
    """

    folder: RunFolder
    config: Config
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path) -> FinishedRun:
        """Opens the folder of a selection, of a benchmark, or of one of a benchmark's selectors.

        Raises:
            DataError: the folder does not exist, or is no run folder.
                A file of a benchmark is not what was written.
            ConfigError: its ``config.yaml`` is not one of this version's.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            problem = "is a file" if path.is_file() else "is no run folder: it holds no config.yaml"
            problem = problem if path.exists() else "does not exist"
            raise DataError(f"{path} {problem}; name a folder that `ostlight select` or `ostlight benchmark` wrote")
        config = load_config(path / "config.yaml")
        if config.benchmark is not None:
            check_saved(path, "run `ostlight benchmark` again to write it")
        if users := in_use_by(path):
            log.warning(f"{path} is in use by {', '.join(users)}: what follows is what it holds by now")
        return cls(RunFolder(path, config, write=False), config)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def is_benchmark(self) -> bool:
        return self.config.benchmark is not None or (self.path / "results.jsonl").is_file()

    @property
    def has_scores(self) -> bool:
        return any(self.folder.scores.glob("part-*.parquet"))

    @cached_property
    def notes(self) -> dict[str, Any]:
        """Facts about the whole run that the selector noted (``ScoringContext.note``)."""
        return read_notes(self.path / "selector")

    @cached_property
    def scores_utility(self) -> bool:
        """Whether the score is a utility; where that is not noted, as the selector's class says."""
        if UTILITY in self.notes:
            return bool(self.notes[UTILITY])
        name = self.config.selector.name
        found = find(name).cls if name in names() else None
        return found is not None and found.scores_utility

    @cached_property
    def parent(self) -> FinishedRun | None:
        """The benchmark that this folder holds one selector of; ``None`` for a run of its own."""
        path = self.path.resolve()
        if path.parent.name != "selectors":
            return None
        try:
            found = FinishedRun.open(path.parent.parent)
        except OstlightError:
            return None
        return found if found.config.benchmark is not None else None

    @cached_property
    def budgets(self) -> list[Budget]:
        """The budget of its selection, else those of the benchmark it belongs to."""
        if self.folder.selection.is_file():
            # That of the configuration may be of a later selection, which has not come to its end.
            made_with = read_settings(self.folder.selection).get("budget")
            return [self.config.budget if made_with is None else Budget(**made_with)]
        return list(self.benchmark.budgets) if self.benchmark else [self.config.budget]

    @property
    def benchmark(self) -> Benchmark | None:
        """Settings of the benchmark that this folder is, or belongs to."""
        return self.config.benchmark or (self.parent.config.benchmark if self.parent else None)

    @cached_property
    def selectors_by_selection(self) -> dict[str, list[str]]:
        """Labels of the benchmark's selectors that kept what a file of ``selections/`` holds, by the file's stem."""
        labels = defaultdict[str, list[str]](list)
        for row in self.parent.score_index if self.parent else []:
            is_ours = self.parent is not None and self.parent.path / row["scores"] == self.path.resolve()
            if is_ours and "selection" in row and row["selector"] not in labels[row["selection"]]:
                labels[row["selection"]].append(row["selector"])
        return dict(labels)

    @cached_property
    def selection_notes(self) -> dict[str, dict[str, Any]]:
        """Facts noted by the last selection for each budget (``SelectionContext.note``), by the budget's label; where
        several of a benchmark's selectors used the same scores, by budget and selector, and by seed where the facts
        of several seeds differ."""
        entries = [entry for entry in self.cost_log if entry.stage == "select" and "budget" in entry.more]
        notes: dict[str, dict[str, Any]] = {}
        for label in (budget.label for budget in self.budgets):
            selected = [entry for entry in entries if entry.more["budget"] == label]
            if self.folder.selection.is_file():
                selected = selected[-1:]  # whatever the selector was called before
            by_selector: dict[str, dict[Any, dict[str, Any]]] = {}
            for entry in selected:
                by_selector.setdefault(entry.selector, {})[entry.more.get("seed")] = entry.more.get("noted", {})
            for selector, by_seed in by_selector.items():
                where = f"{label}, {selector}" if len(by_selector) > 1 else label
                first, *others = by_seed.values()
                if all(noted == first for noted in others):
                    notes[where] = first
                else:
                    notes |= {f"{where}, seed {seed}": noted for seed, noted in by_seed.items()}
        return notes

    @cached_property
    def cost_log(self) -> list[StageCost]:
        """Cost of each stage, with the warm-ups that a benchmark keeps in ``proxies/``."""
        proxies = [RunFolder(p.parent, self.config, write=False) for p in self.path.glob("proxies/*/cost_log.jsonl")]
        return [entry for folder in (*proxies, self.folder) for entry in folder.cost_log.read()]

    @cached_property
    def scored_runs(self) -> list[FinishedRun]:
        """The runs with scores: this one, or a benchmark's selectors, those with the most extra columns first.

        A finished benchmark lists the folders it used; older ones beside them are left out.
        """
        if self.has_scores:
            return [self]
        folders = sorted({p.parent.parent for p in self.path.glob("selectors/*/scores/part-*.parquet")})
        listed = {self.path / row["scores"] for row in self.score_index if not row.get(DEPENDENCY)}
        runs = [FinishedRun.open(folder) for folder in folders if folder in listed or not listed]
        return sorted(runs, key=lambda run: -len(run.extra_columns))

    @cached_property
    def dependency_runs(self) -> list[FinishedRun]:
        """A benchmark's folders of scores that only other scores were computed from."""
        used = {run.path for run in self.scored_runs}
        listed = dict.fromkeys(self.path / row["scores"] for row in self.score_index if row.get(DEPENDENCY))
        return [FinishedRun.open(folder) for folder in listed if folder not in used and folder.is_dir()]

    @cached_property
    def score_index(self) -> list[dict[str, Any]]:
        """Rows of ``score_index.jsonl`` of a benchmark: which selector, variant and selection use which scores."""
        file = self.folder.score_index
        if not file.is_file():
            return []
        with reading_back(file, "run `ostlight benchmark` again to write it"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) and {"scores", "selector", "variant"} <= row.keys() for row in rows):
                raise ValueError("a line is no entry")
            return rows

    @cached_property
    def extra_columns(self) -> set[str]:
        """Columns of the first score file, beyond the score, that the report shows."""
        part = min(self.folder.scores.glob("part-*.parquet"))
        with reading_back(part, CURE):
            check_parquet(part)
            return set(pq.read_schema(part).names) & {*EXTRA_COLUMNS, *VECTOR_COLUMNS}

    @cached_property
    def quarantine(self) -> Quarantine:
        """Rejected records of all stages. A benchmark's selector has no such file: its score table lists them, without
        file and line."""
        if self.folder.quarantine.is_file():
            return Quarantine.read(self.folder.quarantine)
        if not self.has_scores:
            return Quarantine()
        columns = ["position", "id", "reason", "field", "detail"]
        rows = ScoreFiles(self.folder.scores).rejected().select(columns).to_pylist()
        return Quarantine(Row(**row, file="", record=0, stage="score") for row in rows)

    @cached_property
    def pool(self) -> Pool | None:
        """The records; ``None``, and a sentence in ``missing``, where the pool cannot be opened any more."""
        data = self.locate(self.config.pool, "pool")
        try:
            if data.path is None:
                raise DataError("the configuration names no pool")
            return Pool.open(
                data.pieces,
                format=data.format,
                image_root=data.image_root,
                columns=data.columns,
                duplicates=data.duplicates,
                background=data.background,
                limits=data.limits,
                frames=data.video.frames if data.video is not None else None,
            )
        except (OstlightError, OSError) as error:
            self.missing.append(f"Images and texts: the pool cannot be opened ({error}).")
            return None

    def record(self, position: int, id: str) -> Sample:
        """Returns a scored record.

        Raises:
            BadRecord: it cannot be read any more, or another one is at its position.
        """
        if self.pool is None:
            raise BadRecord("no_pool", "the pool cannot be opened")
        try:
            sample = self.pool[position]
        except (IndexError, OSError) as error:
            raise BadRecord("unreadable", str(error)) from error
        if sample.id != id:
            raise BadRecord("changed", f"the pool was changed: at this position there is now {sample.id!r}")
        return sample

    def locate(self, data: D, name: str) -> D:
        """A section of data with paths that can be opened from here, though the run was started elsewhere or moved.

        Args:
            name: of the file among those of a built DigitMath pool.
        """
        if data.path is None:
            built: Path = getattr(Files.in_folder(self.path / "data"), name)
            return replace(data, path=str(built)) if built.exists() else data
        root = data.image_root
        located = [replace(p, path=self._resolve(p.path), image_root=self._resolved(p.image_root)) for p in data.pieces]
        return replace(data, path=list(located), image_root=self._resolved(root))

    def _resolved(self, path: str | None) -> str | None:
        return None if path is None else self._resolve(path)

    def _resolve(self, path: str) -> str:
        """A path of the configuration as seen from here, or from a folder above the run; unchanged if in none."""
        starts = (Path(), *self.path.resolve().parents)
        return next((str(start / path) for start in starts if (start / path).exists()), path)

    @cached_property
    def defect_labels(self) -> dict[str, str]:
        """Defect by sample id, ``clean`` for those without one; empty where the run has no such table."""
        pool, named = self.config.pool.pieces, self.benchmark.defect_labels if self.benchmark else None
        if named:
            files = [Path(self._resolve(named))]
        else:
            folders = [self.path / "data", *(Path(self._resolve(piece.path)).parent for piece in pool)]
            files = [folder / "defect_labels.parquet" for folder in folders]
        file = next(filter(Path.is_file, files), None)
        if file is None:
            if named:
                self.missing.append(f"Defects: {named} (benchmark.defect_labels) does not exist.")
            elif self.config.digitmath is not None and not self.config.pool.pieces:
                self.missing.append("Defects: defect_labels.parquet does not exist; `ostlight select` writes it again.")
            return {}
        cure = "write it again, or remove it: the report then shows no defects"
        labels = read_defect_labels(str(file), cure).items()
        return {id: defect if defect and defect not in CLEAN else "clean" for id, defect in labels}


def open_scored(path: str | Path) -> FinishedRun:
    """Opens the run of a folder that has scores; of a benchmark's selectors the one with the most extra columns.

    Raises:
        DataError: no run folder, or one without scores.
    """
    scored = FinishedRun.open(path).scored_runs
    if not scored:
        raise DataError(f"{path} holds no scores; run `ostlight select` first")
    return scored[0]
