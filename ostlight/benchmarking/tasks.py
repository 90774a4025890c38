"""The tasks of a benchmark: each leaves a file, named by what it is made from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.benchmarking.experiment import Experiment
from ostlight.benchmarking.plan import PlannedRun, file_name, run_training
from ostlight.benchmarking.positions import POSITIONS, digest_of, read_positions
from ostlight.benchmarking.results import RunResult
from ostlight.benchmarking.schedule import Task
from ostlight.config.budget import Budget
from ostlight.config.schema import SelectorChoice
from ostlight.data.atomic import atomic_path
from ostlight.data.checked_json import read_json, write_json
from ostlight.data.checked_parquet import checksum_of
from ostlight.errors import BadRecord, DataError, RunChangedError, read_if_whole
from ostlight.evaluation.answers import ALL
from ostlight.evaluation.evaluate import answer_losses, evaluate_model
from ostlight.models.cost import StageCost
from ostlight.models.module import MultimodalModel
from ostlight.models.vision.cache import opened
from ostlight.pipeline import fingerprint
from ostlight.pipeline.cost_log import selection_cost
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, retried_records, score_pool, scoring_fingerprints
from ostlight.pipeline.scoring.writer import missing_shards
from ostlight.pipeline.subset_selection import select_subset_rows
from ostlight.pipeline.warmup import is_whole_proxy, proxy_fingerprints, warm_up_proxy
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loggers import LoggerOf, log_metrics
from ostlight.training.order import best_first
from ostlight.training.precision import target_compute
from ostlight.training.trainer import first_device

log = logging.getLogger(__name__)


class ProxyTask:
    """The warmed-up proxy, in ``proxies/``."""

    needs = ()

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self.experiment = experiment
        config = dataclasses.replace(experiment.config, seed=seed)
        digest = fingerprint.of_values(proxy_fingerprints(config, experiment.pool, experiment.anchors))
        self.key = f"proxy {digest}"
        details = [experiment.variant, f"seed {seed}" if seed != experiment.config.seed else ""]
        self.name = " ".join(["warm-up", ", ".join(filter(None, details))]).strip()
        self.kind = f"warm-up {experiment.variant}"
        self.config = experiment.stage_config(config, f"proxy-{digest[:8]}", "proxies")
        self.is_warmed_up = self.config.proxy.warmup.fraction > 0

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    def is_done(self) -> bool:
        return not self.is_warmed_up or is_whole_proxy(self.folder.proxy)

    def run(self) -> None:
        warm_up_proxy(self.config, self.folder, self.experiment.pool, self.experiment.anchors)


class ScoreTask:
    """A selector's scores of the whole pool, in ``selectors/``.

    Choices that differ only in how they select share it; it has the label of the first, its folder that of the first
    that was ever scored.

    Args:
        choice: the selector and its options, which ``selector`` was made from.
        seed: of the scoring.
        proxy: where the selector uses one.
        dependencies: the tasks of ``selector.dependencies()``, by label.
    """

    def __init__(
        self,
        experiment: Experiment,
        choice: SelectorChoice,
        selector: Selector,
        seed: int,
        proxy: ProxyTask | None,
        dependencies: Mapping[str, ScoreTask],
    ) -> None:
        self.experiment, self.selector, self.proxy, self.dependencies = experiment, selector, proxy, dependencies
        self.needs: list[Task] = [*([proxy] if proxy else []), *dependencies.values()]
        config = dataclasses.replace(experiment.config, seed=seed, selector=choice)
        digest = fingerprint.of_values(scoring_fingerprints(config, experiment.pool, experiment.anchors, selector))
        self.key = f"scores {digest}"
        label = f"{choice.shown}-seed{seed}" if selector.stochastic else choice.shown
        self.name = f"scores of {label}" + (f", {experiment.variant}" if experiment.variant else "")
        self.kind = f"scores of {choice.shown}, {experiment.variant}"
        self.config = experiment.score_config(choice, seed, experiment.score_folder_name(file_name(label), digest[:8]))

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def proxy_folder(self) -> RunFolder:
        """Where the warmed-up proxy is; this task's own folder for a selector that needs none."""
        return self.proxy.folder if self.proxy and self.proxy.is_warmed_up else self.folder

    def is_done(self) -> bool:
        return not missing_shards(self.folder.scores, -(-len(self.experiment.pool) // self.config.compute.shard_size))

    def has_retries(self) -> bool:
        """Whether there are rejected records whose images can be read by now, or that the selector asks about again:
        a judge whose replies have come, say.

        Raises:
            RunChangedError: images that scores were made from are others now.
        """
        return any(retried_records(self.folder, self.experiment.pool, self.selector, self.experiment.folder))

    def content(self) -> str:
        """Fingerprint of the scores as they are: records that are tried again change some."""
        return fingerprint.of_values([checksum_of(file) for file in sorted(self.folder.scores.glob("part-*.parquet"))])

    def run(self) -> None:
        dependencies = {label: task.folder for label, task in self.dependencies.items()}
        score_pool(
            ScoringJob(self.config, self.folder, self.experiment.pool, self.selector, self.proxy_folder, dependencies)
        )

    def with_dependencies(self) -> list[ScoreTask]:
        """Returns this task and all whose scores it needs, each once."""
        tasks = {self.key: self}
        for dependency in self.dependencies.values():
            tasks |= {task.key: task for task in dependency.with_dependencies()}
        return list(tasks.values())


class SelectionTask:
    """What is trained on, in ``selections/``: positions as ``.npy``, and what is known about them as JSON."""

    experiment: Experiment
    file: Path

    def scores_now(self) -> str | None:
        """Fingerprint of the scores that it would be made from; ``None`` where it is made from none."""
        return None

    def is_done(self) -> bool:
        facts, positions = _read_facts(self.file), self.file.with_suffix(".npy")
        if facts is None or not positions.exists():
            return False
        if facts.get(SCORES) not in (None, self.scores_now()):
            return False
        return read_if_whole(positions, lambda: read_positions(positions, facts), SELECTED_AGAIN) is not None

    def write(self, positions: np.ndarray, cost: StageCost, scores: str | None = None) -> None:
        """Writes the JSON file last.

        Args:
            scores: fingerprint of the scores that it was made from.
        """
        positions = positions.astype(np.int64)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.file.with_suffix(".npy")) as temporary:
            np.save(temporary, positions)
        facts = {
            "kept": len(positions),
            POSITIONS: digest_of(positions),
            **({} if scores is None else {SCORES: scores}),
            "defects_kept": self.experiment.count_defects(positions),
            "cost": {
                "s": cost.device_s,
                "wall_s": cost.wall_s,
                "flops": cost.flops,
                "calls": cost.calls,
                "price": cost.price,
            },
        }
        write_json(self.file, facts)


SELECTED_AGAIN = "the selection is made again"
SCORES = "scores"
"""Of a selection's facts: what the scores were that it was made from."""


def _read_facts(file: Path) -> dict[str, Any] | None:
    """What a finished task wrote; ``None`` where there is none, or it is damaged, which a warning says."""
    if not file.exists():
        return None
    return read_if_whole(file, lambda: read_json(file), "the task is run again")


class SelectTask(SelectionTask):
    """What a selector keeps within a budget, beside its scores.

    Args:
        choice: the selector and its options, which ``selector`` was made from.
        seed: of the selection.
    """

    def __init__(
        self,
        experiment: Experiment,
        scores: ScoreTask,
        choice: SelectorChoice,
        selector: Selector,
        budget: Budget,
        seed: int,
    ) -> None:
        self.experiment, self.scores, self.selector, self.budget = experiment, scores, selector, budget
        self.needs = [scores]
        self.config = experiment.score_config(choice, seed, scores.config.name)
        digest = fingerprint.of_values(
            {
                "scores": scores.key,
                "budget": dataclasses.asdict(budget),
                "options": dataclasses.asdict(selector.options),
                "seed": seed,
                "target": experiment.target_fingerprints if budget.tokens else None,
                "groups": experiment.config.anchors.group or experiment.config.evaluation.by,  # of trials
                **experiment.selecting_fingerprints,
            }
        )
        self.key = f"select {digest}"
        self.name = f"selection of {budget.label} by the {scores.name}"
        self.kind = f"selection of {budget.label} by {choice.shown}, {experiment.variant}"
        self.file = scores.folder.path / "selections" / f"{file_name(budget.label)}-{digest[:8]}.json"

    def scores_now(self) -> str:
        return self.scores.content()

    def run(self) -> None:
        folder, pool = self.scores.folder, self.experiment.pool
        content, scores = self.scores.content(), Scores.read(folder.scores)
        rows, selecting = select_subset_rows(self.config, folder, pool, self.selector, scores, self.budget)
        if not len(rows):
            raise DataError(f"{self.name}: the budget keeps no sample")
        self.write(scores.positions[rows], self._cost(selecting), content)

    def _cost(self, selecting: StageCost) -> StageCost:
        """Returns the cost of the warm-up, of scoring, that of dependencies included, and of selecting."""
        scoring = self.scores.with_dependencies()
        warm_up = next((task.proxy_folder.cost_log.read() for task in scoring if task.proxy), [])
        # The attempts at one folder's scores belong together, whatever its selector is called.
        attempts = [
            dataclasses.replace(cost, selector=task.key) for task in scoring for cost in task.folder.cost_log.read()
        ]
        return selection_cost(warm_up, attempts, selecting, len(self.experiment.pool))


class OracleTask(SelectionTask):
    """A random selection of clean samples."""

    needs = ()

    def __init__(self, experiment: Experiment, budget: Budget, seed: int) -> None:
        self.experiment, self.budget, self.seed = experiment, budget, seed
        digest = fingerprint.of_values(
            [experiment.pool.fingerprint(), experiment.selecting_fingerprints, dataclasses.asdict(budget), seed]
        )
        self.key = f"oracle {digest}"
        self.name = f"oracle {budget.label} seed{seed}"
        self.kind = "oracle"
        self.file = experiment.folder.path / "selections" / f"{file_name(self.name)}-{digest[:8]}.json"

    def run(self) -> None:
        self.write(self.experiment.random_clean_positions(self.budget, self.seed), StageCost("select"))


NO_SELECTION: dict[str, Any] = {"kept": 0, "positions": "", "defects_kept": {}, "cost": {}}
"""Of the untrained model."""


class TrainTask:
    """One planned run: a training and its test, in ``trained/``.

    Args:
        selection: what is trained on; ``None`` for the untrained model.
    """

    def __init__(self, experiment: Experiment, planned: PlannedRun, selection: SelectTask | OracleTask | None) -> None:
        self.experiment, self.planned, self.selection = experiment, planned, selection
        self.name = planned.name
        budget = planned.budget.label if planned.budget else "nothing"
        self.kind = f"training on {budget}, {planned.protocol}, {planned.variant}"
        self.needs = [selection] if selection else []
        self.training = run_training(experiment.config, planned, len(experiment.pool))

    @cached_property
    def selection_facts(self) -> dict[str, Any]:
        if self.selection is None:
            return NO_SELECTION
        facts = _read_facts(self.selection.file)
        if facts is None:
            raise RunChangedError(
                f"{self.name}: its selection is not where it was to be written; if code or data changed while the "
                "benchmark ran, run the same command again"
            )
        return facts

    @cached_property
    def key(self) -> str:
        inputs = dict(self.experiment.training_fingerprints)
        if self.selection:
            inputs |= {
                "pool": self.experiment.pool.fingerprint()[:16],
                "kept": self.selection_facts["positions"],
                "training": dataclasses.asdict(self.training),
                "seed": self.planned.seed,
            }
            if self._ranked_by is not None:
                inputs["scores"] = [self._ranked_by.key, self._ranked_by.content()]
        return f"train-{fingerprint.of_values(inputs)}"

    @property
    def file(self) -> Path:
        """A planned run of another name that is made from the same may have written it."""
        folder, ending = self.experiment.folder.path / "trained", f"-{self.key.removeprefix('train-')}.json"
        return next(iter(folder.glob(f"*{ending}")), folder / f"{self.name}{ending}")

    def is_done(self) -> bool:
        return _read_facts(self.file) is not None

    def run(self) -> None:
        with opened(self.experiment.config.compute.vision_cache_gib, self.name):
            self._run()

    def _run(self) -> None:
        experiment, cost, logger = self.experiment, StageCost("train", self.planned.label), LoggerOf()
        home, compute = experiment.folder, dataclasses.replace(target_compute(experiment.config), progress=False)
        model = experiment.load_target(self.training)
        unusable: dict[int, BadRecord] = {}
        if self.selection:
            data = experiment.encoded_pool.select(self._positions())
            with home.cost_log.stage("train", self.name) as cost:
                job = TrainingJob(compute, home.path, self.name, self.planned.seed, [logger], quiet=True)
                unusable = fit(model, data, job, cost)
            if unusable:
                log.warning(
                    f"{self.name}: {len(unusable):,} of {len(data):,} selected samples cannot be trained on and are "
                    f"left out; the first: {next(iter(unusable.values()))}"
                )
        model.to(first_device(compute))
        metric, (values, items) = experiment.metric.name, self._measure(model)
        log_metrics(compute, home.path, self.name, {f"{metric}/{k}": v for k, v in values.items()}, logger)
        facts = {
            "values": values,
            "items": items,
            "training_s": cost.device_s,
            "training_wall_s": cost.wall_s,
            "training_flops": cost.flops,
            "unusable": len(unusable),
        }
        write_json(self.file, facts)
        log.info(f"{self.name}: {metric} {values[ALL]:.3f}")

    def _positions(self) -> np.ndarray:
        """What is trained on: best first, where the training goes by utility and there are scores."""
        assert self.selection is not None, "the untrained model is trained on nothing"
        positions = read_positions(self.selection.file.with_suffix(".npy"))
        if self._ranked_by is None:
            return positions
        scores = Scores.read(self._ranked_by.folder.scores)
        return best_first(positions, scores.positions.tolist(), scores.score.tolist())

    @property
    def _ranked_by(self) -> ScoreTask | None:
        """What gives the order of the training; ``None`` where it goes by none."""
        if self.training.order == "shuffled" or not isinstance(self.selection, SelectTask):
            return None
        return self.selection.scores

    def _measure(self, model: MultimodalModel) -> tuple[dict[str, float], list[float | None]]:
        """Returns the metric by group, and for each question."""
        experiment, settings = self.experiment, self.experiment.config.evaluation
        if experiment.metric.name == "loss":
            budget = experiment.config.compute.tokens_per_batch
            return answer_losses(model, experiment.questions, settings.by, budget)
        result = evaluate_model(model, experiment.questions, settings)
        return result.accuracy, [float(correct) for correct in result.predictions["correct"].to_pylist()]

    def result(self) -> RunResult | None:
        """Returns what the run came to; ``None`` where it is not finished."""
        if not all(need.is_done() for need in self.needs) or not self.is_done():
            return None
        planned, selection = self.planned, self.selection_facts
        kept, defects = selection["kept"], sum(selection["defects_kept"].values())
        facts = read_json(self.file)
        facts["items"] = np.array(facts["items"], dtype=np.float64)  # null becomes NaN
        is_labelled = self.experiment.defect_labels is not None and kept > 0
        return RunResult(
            label=planned.label,
            budget=planned.budget.label if planned.budget else "",
            protocol=planned.protocol,
            seed=planned.seed,
            variant=planned.variant,
            metric=self.experiment.metric.name,
            kept=kept,
            defect_share=defects / kept if is_labelled else None,
            **{f"selection_{name}": value for name, value in selection["cost"].items()},
            **facts,
        )
