"""One variant of a benchmark: warm-up, scores, picks and cells as tasks, each named by what it is made from.

What two variants (or two runs of the benchmark in one folder) make from the same is therefore made once: a proxy scores
for several targets, a random subset does not care which anchors there are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ostlight.benchmarking.plan import plan_runs
from ostlight.benchmarking.scheduler import Room, Task
from ostlight.benchmarking.tasks import ProxyTask, ScoreTask, TrainTask, with_needs
from ostlight.config.budget import Budget
from ostlight.config.schema import Config, SelectorChoice, Training
from ostlight.data.sample import Sample
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import Questions, read_questions, refuse_unknown_tag
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, open_pool, read_anchors, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.registry import create
from ostlight.training.steps import EncodedPool

CLEAN = (None, "", "clean")
"""What a truth table calls a record without a defect."""


class Experiment:
    """What the cells of one variant share: the pool, its encodings, the questions.

    Args:
        config: of the variant.
        home: the benchmark's folder.
        room: where processes that share the work meet.
        variant: its label; empty where there are none.
    """

    def __init__(self, config: Config, home: RunFolder, room: Room, variant: str = "") -> None:
        assert config.benchmark is not None, "checked by benchmark"
        self.home, self.variant = home, variant
        self.config = self._with_pool(config, room)
        assert self.config.benchmark is not None, "a pool takes nothing away"
        self.settings = self.config.benchmark
        self.pool = open_pool(self.config.pool, "pool")
        refuse_unknown_tag(open_pool(self.config.test, "test"), self.config.evaluation.by)
        self.defect_labels = _read_defect_labels(self.settings.defect_labels)
        self.defect_labels_key = fingerprint.of_values(self.defect_labels)
        """Of what the truth says, which may be a line for every record: taken once, not by every task."""
        self.planned_runs = plan_runs(self.settings, self.defect_labels is not None, variant)
        self._scores: dict[tuple[str, int], ScoreTask] = {}
        self._proxies: dict[int, ProxyTask] = {}
        self.scored_as: dict[str, str] = {}
        """By what scores are made from, the label of the first choice that needs them; others only pick otherwise."""

    def _with_pool(self, config: Config, room: Room) -> Config:
        if config.digitmath is None:
            return with_digitmath(config, self.home)
        key = fingerprint.of_values(vars(config.digitmath) | {"code": fingerprint.of_code(*fingerprint.DATA)})
        with room.mine(f"pool {key}", "pool", wait=True):
            return with_digitmath(config, RunFolder.of(self.own(config, f"digitmath-{key[:8]}", "pools")))

    def own(self, config: Config, name: str, kind: str) -> Config:
        """The configuration of a stage that has a folder of its own in the benchmark's."""
        return dataclasses.replace(config, name=name, folder=str(self.home.path / kind), benchmark=None)

    @cached_property
    def train_tasks(self) -> list[TrainTask]:
        return [TrainTask(self, planned) for planned in self.planned_runs]

    @cached_property
    def tasks(self) -> list[Task]:
        """Stages first, in the order of the cells that need them."""
        stages: dict[str, Task] = {}
        for stage in (stage for planned in self.train_tasks for stage in with_needs(planned)[:-1]):
            stages.setdefault(stage.key, stage)
        return [*stages.values(), *self.train_tasks]

    def scores(self, choice: SelectorChoice, seed: int) -> ScoreTask:
        """The one task that scores for all budgets, and for all seeds where the selector draws nothing at random."""
        selector = create(choice.name, choice.options)
        seed = seed if selector.stochastic else self.config.seed
        if (choice.shown, seed) not in self._scores:
            self._scores[choice.shown, seed] = ScoreTask(self, choice, selector, seed)
        return self._scores[choice.shown, seed]

    def proxy(self, seed: int) -> ProxyTask:
        if seed not in self._proxies:
            self._proxies[seed] = ProxyTask(self, seed)
        return self._proxies[seed]

    @cached_property
    def anchors(self) -> LoadedAnchors:
        return read_anchors(self.config)

    @cached_property
    def data(self) -> EncodedPool:
        return EncodedPool(self.pool, range(len(self.pool)), self.target().encoder)

    @cached_property
    def questions(self) -> Questions:
        return read_questions(open_pool(self.config.test, "test"), self.target())

    @cached_property
    def samples(self) -> list[Sample]:
        """Every usable record, without its pictures' bytes."""
        read = (s for _, s in self.pool.read(range(len(self.pool))))
        return [dataclasses.replace(s, images=()) for s in read if isinstance(s, Sample)]

    @cached_property
    def training_fingerprints(self) -> dict[str, Any]:
        """Everything all cells depend on; the untrained model on nothing else."""
        elsewhere = dict.fromkeys(("path", "training", "patience", "checkpoint_minutes"))
        return {
            "test": open_pool(self.config.test, "test").fingerprint()[:16],
            "target.path": fingerprint.of_model(self.config.target.path, "target"),
            "target": dataclasses.asdict(self.config.target) | elsewhere,
            "compute.precision": self.config.compute.precision,
            "evaluation": dataclasses.asdict(self.config.evaluation),
            "training code": fingerprint.of_code(*fingerprint.TRAINING, "ostlight.evaluation"),
        }

    def target(self, training: Training | None = None) -> MultimodalModel:
        return MultimodalModel.load(self.config.target, "target", training or self.config.target.training)

    def clean(self, budget: Budget, seed: int) -> np.ndarray:
        """As many samples as the budget allows, tag by tag where it says so, drawn from the clean ones only."""
        assert self.defect_labels is not None, "the oracle is planned only with a truth"
        within = budget.stratify_by
        tags = {s.position: s.tags.get(within, "") if within else "" for s in self.samples}
        sizes = dict(Counter(tags.values()))
        wanted = budget.shares(sizes)
        clean = np.array([s.position for s in self.samples if s.id not in self.defect_labels])
        left = {tag: share.size(sizes[tag]) for tag, share in wanted.items()}
        kept = []
        for position in np.random.default_rng(seed).permutation(clean).tolist():
            if left.get(tags[position], 0):
                left[tags[position]] -= 1
                kept.append(position)
        return np.array(kept)

    def defects(self, kept: np.ndarray) -> dict[str, int]:
        """How many of the kept records have which defect."""
        if self.defect_labels is None:
            return {}
        wanted = set(kept.tolist())
        found = Counter(
            self.defect_labels[s.id] for s in self.samples if s.position in wanted and s.id in self.defect_labels
        )
        return dict(sorted(found.items()))


def _read_defect_labels(path: str | None) -> dict[str, str] | None:
    """Defect by id, of the defective records only."""
    if path is None:
        return None
    table = pq.read_table(path)
    if not {"id", "defect"} <= set(table.column_names):
        raise DataError(f"benchmark.defect_labels: {path} must have columns id and defect; it has {table.column_names}")
    rows = zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True)
    return {i: d for i, d in rows if d not in CLEAN}
