"""One variant of a benchmark: its configuration, pool, questions and planned runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np

from ostlight.benchmarking.metric import METRICS
from ostlight.benchmarking.plan import plan_runs
from ostlight.config.budget import SOURCE, Budget
from ostlight.config.schema import Config, SelectorChoice, Training
from ostlight.data.checked_parquet import read_parquet
from ostlight.data.sample import Sample
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import Questions, read_questions, refuse_unknown_tag
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import worker_count
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, fingerprint_of_records, open_pool, read_anchors, with_digitmath
from ostlight.pipeline.required import refuse_unsuited_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.sharded_proxy import refuse_sharding
from ostlight.pipeline.tags import refuse_missing_tags
from ostlight.selection.registry import create_all
from ostlight.training.precision import precision_of, target_compute
from ostlight.training.steps import EncodedPool

CLEAN = (None, "", "clean")
"""How a table of defect labels marks a record without a defect."""


class Experiment:
    """What the tasks of one variant share. Builds the built-in pool where the configuration asks for it.

    Args:
        config: of the variant.
        folder: the benchmark's.
        variant: its label; empty where there are no variants.

    Attributes:
        metric: what is compared.
        defect_labels: defect by id, of the defective records; ``None`` where no labels are given.
    """

    def __init__(self, config: Config, folder: RunFolder, variant: str = "") -> None:
        self.folder, self.variant = folder, variant
        self.config = self._with_pool(config)
        assert self.config.benchmark is not None, "checked by benchmark"
        self.pool = open_pool(self.config.pool, "pool", folder=folder)
        refuse_unknown_tag(open_pool(self.config.test, "test"), self.config.evaluation.by)
        budgets = {f"benchmark.budgets[{k}]": budget for k, budget in enumerate(self.config.benchmark.budgets)}
        choices = self.config.benchmark.selectors
        for choice, selector in zip(choices, create_all(choices, "benchmark.selectors"), strict=True):
            refuse_missing_tags(self.pool, selector, budgets, lambda: self.anchors.groups)
            refuse_unsuited_anchors(self.anchors, choice.shown, selector)
            refuse_sharding(self.config, choice.shown, selector, self.anchors.group_count)
        self.defect_labels = _read_defect_labels(self.config.benchmark.defect_labels)
        self.metric = METRICS[self.config.benchmark.metric]
        self.defect_labels_key = fingerprint.of_values(self.defect_labels)
        self.planned_runs = plan_runs(self.config.benchmark, self.defect_labels is not None, variant)

    def _with_pool(self, config: Config) -> Config:
        if config.digitmath is None:
            return with_digitmath(config, self.folder)
        code = {"code": fingerprint.of_code(*fingerprint.DATA), "packages": fingerprint.package_versions()}
        key = fingerprint.of_values(vars(config.digitmath) | code)
        return with_digitmath(config, RunFolder.of(self.stage_config(config, f"digitmath-{key[:8]}", "pools")))

    def stage_config(self, config: Config, name: str, parent: str) -> Config:
        """Returns the configuration of a stage whose run folder is ``PARENT/NAME`` in the benchmark's."""
        return dataclasses.replace(config, name=name, folder=str(self.folder.path / parent), benchmark=None)

    def score_config(self, choice: SelectorChoice, seed: int, name: str) -> Config:
        """Returns the configuration of scoring and selecting in the run folder ``selectors/NAME``."""
        config = dataclasses.replace(self.config, seed=seed, selector=choice, digitmath=None)
        return self.stage_config(config, name, "selectors")

    @cached_property
    def anchors(self) -> LoadedAnchors:
        return read_anchors(self.config)

    @cached_property
    def encoded_pool(self) -> EncodedPool:
        return EncodedPool(self.pool, range(len(self.pool)), self.load_target().encoder)

    @cached_property
    def questions(self) -> Questions:
        test = open_pool(self.config.test, "test")
        return read_questions(test, self.load_target(), worker_count(self.config.compute, len(test)))

    @cached_property
    def samples(self) -> list[Sample]:
        """Every usable record, without its images."""
        records = (sample for _, sample in self.pool.read(range(len(self.pool))))
        return [dataclasses.replace(s, images=()) for s in records if isinstance(s, Sample)]

    @cached_property
    def training_fingerprints(self) -> dict[str, Any]:
        """Everything that all trainings and their tests depend on; the untrained model depends on nothing else."""
        ignored = dict.fromkeys(("path", "name", "training", "precision", "patience", "checkpoint_minutes"))
        return {
            "test": fingerprint_of_records(self.config.test, "test"),
            "metric": self.metric.name,
            "target.path": self.target_fingerprint,
            "target": dataclasses.asdict(self.config.target) | ignored,
            "compute.precision": precision_of(target_compute(self.config)),
            "evaluation": dataclasses.asdict(self.config.evaluation),
            "training code": fingerprint.of_code(*fingerprint.TRAINING, "ostlight.evaluation"),
            "package versions": fingerprint.package_versions(),
        }

    @cached_property
    def target_fingerprint(self) -> str:
        return fingerprint.of_model(self.config.target.path, "target")

    def load_target(self, training: Training | None = None) -> MultimodalModel:
        return MultimodalModel.load(self.config.target, "target", training or self.config.target.training)

    def random_clean_positions(self, budget: Budget, seed: int) -> np.ndarray:
        """Returns ``[K]`` positions of as many clean samples as the budget allows, sampled at random, stratum by
        stratum where the budget is stratified."""
        assert self.defect_labels is not None, "the oracle is planned only with defect labels"
        tag = budget.stratify_by
        strata = {s.position: s.tags.get(tag, "") if tag else "" for s in self.samples}
        sizes = Counter(strata.values())
        factors = self.config.pool.weights if tag == SOURCE else {}
        weights = {stratum: size * factors.get(stratum, 1.0) for stratum, size in sizes.items()} if factors else None
        shares = budget.shares(dict(sizes), weights=weights)
        remaining = {stratum: share.size(sizes[stratum]) for stratum, share in shares.items()}
        clean = np.array([s.position for s in self.samples if s.id not in self.defect_labels])
        positions = []
        for position in np.random.default_rng(seed).permutation(clean).tolist():
            if remaining.get(strata[position], 0):
                remaining[strata[position]] -= 1
                positions.append(position)
        return np.array(positions)

    def count_defects(self, positions: np.ndarray) -> dict[str, int]:
        """Returns how many of these records have which defect."""
        labels, selected = self.defect_labels or {}, set(positions.tolist())
        counts = Counter(labels[s.id] for s in self.samples if s.position in selected and s.id in labels)
        return dict(sorted(counts.items()))


def _read_defect_labels(path: str | None) -> dict[str, str] | None:
    """Returns the defect by id, of the defective records only."""
    if path is None:
        return None
    table = read_parquet(path, "write it again")
    if not {"id", "defect"} <= set(table.column_names):
        raise DataError(f"benchmark.defect_labels: {path} must have columns id and defect; it has {table.column_names}")
    rows = zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True)
    return {id: defect for id, defect in rows if defect not in CLEAN}
