"""One variant of a benchmark: its configuration, pool, questions and planned runs."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np

from ostlight.benchmarking.defect_labels import CLEAN, read_defect_labels
from ostlight.benchmarking.metric import METRICS
from ostlight.benchmarking.plan import plan_runs
from ostlight.config.budget import SOURCE, Budget
from ostlight.config.schema import Config, SelectorChoice, Training
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

log = logging.getLogger(__name__)


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
        labels = self.config.benchmark.defect_labels
        self._labelled = None if labels is None else read_defect_labels(labels)
        self.metric = METRICS[self.config.benchmark.metric]
        self.defect_labels_key = fingerprint.of_values(self.defect_labels)
        self.planned_runs = plan_runs(self.config.benchmark, self.defect_labels is not None, variant)

    @cached_property
    def defect_labels(self) -> dict[str, str] | None:
        """The defect by id, of the defective records only."""
        if self._labelled is None:
            return None
        return {id: defect for id, defect in self._labelled.items() if defect not in CLEAN}

    def refuse_unfit_labels(self) -> None:
        """Checks that the defect labels are of this pool's records. Reads the pool.

        Raises:
            DataError: no id of the labels is in the pool, or one stands for several of its records; labels that name
                clean records too leave records out.
        """
        if not self._labelled:
            return
        path = self.config.benchmark.defect_labels if self.config.benchmark else None
        ids = {sample.id for sample in self.samples}
        if ids.isdisjoint(self._labelled):
            raise DataError(
                f"benchmark.defect_labels: no id of {path} (such as {next(iter(self._labelled))!r}) is that of a "
                f"record of the pool (such as {min(ids, default='')!r})"
            )
        unlabelled = sorted(ids - self._labelled.keys())
        for id in unlabelled:
            base, mark, number = id.rpartition("#")
            if mark and number.isdecimal() and base in ids and base in self._labelled:
                raise DataError(
                    f"benchmark.defect_labels: {path} names {base!r}, an id that several records of the pool share; "
                    f"make ids unique, label {id!r} too, or set pool.duplicates=first or reject"
                )
        if unlabelled and any(defect in CLEAN for defect in self._labelled.values()):
            raise DataError(
                f"benchmark.defect_labels: {path} says which records are clean, and {len(unlabelled):,} of "
                f"{len(ids):,} records of the pool have no label (such as {unlabelled[0]!r}); label them, or list the "
                "defective ones alone"
            )

    def _with_pool(self, config: Config) -> Config:
        if config.digitmath is None:
            return with_digitmath(config, self.folder)
        code = {"code": fingerprint.of_code(*fingerprint.DATA), "packages": fingerprint.package_versions()}
        key = fingerprint.of_values(vars(config.digitmath) | code)
        return with_digitmath(config, RunFolder.of(self.stage_config(config, f"digitmath-{key[:8]}", "pools")))

    def stage_config(self, config: Config, name: str, parent: str) -> Config:
        """Returns the configuration of a stage whose run folder is ``PARENT/NAME`` in the benchmark's."""
        return dataclasses.replace(config, name=name, folder=str(self.folder.path / parent), benchmark=None)

    def score_folder_name(self, label: str, key: str) -> str:
        """Returns ``LABEL-KEY``, or the name of the folder in ``selectors/`` that has the key already: rows in another
        order or with other labels are not scored again."""
        made = sorted((self.folder.path / "selectors").glob(f"*-{key}"))
        return made[0].name if made else f"{label}-{key}"

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
        workers, by_loss = worker_count(self.config.compute, len(test)), self.metric.name == "loss"
        questions = read_questions(test, self.load_target(), self.config.evaluation, workers, by_loss)
        if questions.rejections:
            first = next(iter(questions.rejections.values()))
            log.warning(
                f"{self.config.test.path}: {len(questions.rejections)} of {len(test)} test records cannot be used and "
                f"count nowhere; the first says: {first}"
            )
        return questions

    @cached_property
    def samples(self) -> list[Sample]:
        """Every usable record, without its images."""
        records = (sample for _, sample in self.pool.read(range(len(self.pool))))
        return [dataclasses.replace(s, images=()) for s in records if isinstance(s, Sample)]

    @cached_property
    def target_fingerprints(self) -> dict[str, Any]:
        """The target before its training: its files, and the settings it is loaded with."""
        ignored = dict.fromkeys(("path", "name", "training", "precision", "patience", "checkpoint_minutes"))
        return {
            "target.path": fingerprint.of_model(self.config.target.path, "target"),
            "target": dataclasses.asdict(self.config.target) | ignored,
        }

    @cached_property
    def selecting_fingerprints(self) -> dict[str, Any]:
        """Everything that all selections depend on, besides scores, options, budget and seed."""
        return {
            "weights": self.config.pool.weights,
            "defect_labels": self.defect_labels_key,
            "selecting code": fingerprint.of_code(*fingerprint.SELECTING),
        }

    @cached_property
    def training_fingerprints(self) -> dict[str, Any]:
        """Everything that all trainings and their tests depend on; the untrained model depends on nothing else."""
        return {
            "test": fingerprint_of_records(self.config.test, "test"),
            "metric": self.metric.name,
            **self.target_fingerprints,
            "compute.precision": precision_of(target_compute(self.config)),
            "evaluation": dataclasses.asdict(self.config.evaluation),
            "training code": fingerprint.of_code(*fingerprint.TRAINING, "ostlight.evaluation"),
            "package versions": fingerprint.package_versions(),
        }

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
