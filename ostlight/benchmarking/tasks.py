"""The tasks of a benchmark: each leaves a file, named by what it is made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostlight.benchmarking.plan import PlannedRun, file_name, run_training
from ostlight.benchmarking.results import RunResult
from ostlight.benchmarking.scheduler import Task
from ostlight.config.budget import Budget
from ostlight.config.schema import BASE, SelectorChoice
from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import evaluate_model
from ostlight.models.cost import StageCost
from ostlight.pipeline import fingerprint
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool, scoring_fingerprints
from ostlight.pipeline.scoring.writer import missing_shards
from ostlight.pipeline.selection_cost import selection_cost
from ostlight.pipeline.subset_selection import select_subset_rows
from ostlight.pipeline.warmup import DONE, proxy_fingerprints, warm_up_proxy
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loggers import LoggerOf, log_metrics
from ostlight.training.trainer import first_device

if TYPE_CHECKING:
    from ostlight.benchmarking.experiment import Experiment

log = logging.getLogger(__name__)


def with_needs(task: Task) -> list[Task]:
    """A task behind everything it needs."""
    return [*(t for need in task.needs for t in with_needs(need)), task]


class ProxyTask:
    """The warmed-up proxy, in ``proxies/``: one for all, but for selectors that draw at random and so have a run of
    their own for every seed."""

    needs: Sequence[Task] = ()

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self.experiment = experiment
        config = dataclasses.replace(experiment.config, seed=seed)
        made_from = fingerprint.of_values(proxy_fingerprints(config, experiment.pool, experiment.anchors))
        self.key = f"proxy {made_from}"
        of = [experiment.variant] if experiment.variant else []
        of += [f"seed {seed}"] if seed != experiment.config.seed else []
        self.name = " ".join(["warm-up", ", ".join(of)]).strip()
        self.config = experiment.own(config, f"proxy-{made_from[:8]}", "proxies")
        self.warms = self.config.proxy.warmup.fraction > 0

    @cached_property
    def home(self) -> RunFolder:
        return RunFolder.of(self.config)

    def done(self) -> bool:
        return not self.warms or (self.home.proxy / DONE).exists()

    def run(self) -> None:
        warm_up_proxy(self.config, self.home, self.experiment.pool, self.experiment.anchors)


class ScoreTask:
    """A selector's scores of the whole pool, in ``selectors/``."""

    def __init__(self, experiment: Experiment, choice: SelectorChoice, selector: Selector, seed: int) -> None:
        self.experiment, self.selector = experiment, selector
        self.proxy = experiment.proxy(seed) if selector.uses_proxy else None
        self.needs: Sequence[Task] = [self.proxy] if self.proxy else []
        config = dataclasses.replace(experiment.config, seed=seed, selector=choice)
        made_from = fingerprint.of_values(
            scoring_fingerprints(config, experiment.pool, experiment.anchors, self.selector)
        )
        self.key = f"scores {made_from}"
        label = f"{choice.shown}-seed{seed}" if self.selector.stochastic else choice.shown
        label = experiment.scored_as.setdefault(made_from, label)
        self.name = f"scores of {label}" + (f", {experiment.variant}" if experiment.variant else "")
        own = experiment.own(config, f"{file_name(label)}-{made_from[:8]}", "selectors")
        self.config = dataclasses.replace(own, digitmath=None)

    @cached_property
    def place(self) -> RunFolder:
        return RunFolder.of(self.config)

    def done(self) -> bool:
        return not missing_shards(self.place.scores, -(-len(self.experiment.pool) // self.config.compute.shard_size))

    def run(self) -> None:
        score_pool(ScoringJob(self.config, self.place, self.experiment.pool, self.selector, self.proxy_home))

    @property
    def proxy_home(self) -> RunFolder:
        """Where the warmed-up proxy lies; its own folder for a selector that needs none."""
        return self.proxy.home if self.proxy and self.proxy.warms else self.place


class SelectTask:
    """What a selector keeps within a budget, and what choosing it cost, beside its scores."""

    def __init__(self, experiment: Experiment, scores: ScoreTask, budget: Budget) -> None:
        self.experiment, self.scores, self.budget = experiment, scores, budget
        self.needs: Sequence[Task] = [self.scores]
        made_from = fingerprint.of_values(
            {
                "scores": self.scores.key,
                "budget": dataclasses.asdict(budget),
                "options": dataclasses.asdict(self.scores.selector.options),
                "target": fingerprint.of_model(experiment.config.target.path, "target") if budget.tokens else None,
                "defect_labels": experiment.defect_labels_key,
            }
        )
        self.key = f"pick {made_from}"
        self.name = f"pick {budget.label} by the {self.scores.name}"
        self.file = self.scores.place.path / "picks" / f"{file_name(budget.label)}-{made_from[:8]}.json"

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        task, place, pool = self.scores, self.scores.place, self.experiment.pool
        scores = Scores.read(place.scores)
        rows, entry = select_subset_rows(task.config, place, pool, task.selector, scores, self.budget)
        if not len(rows):
            raise DataError(f"{self.name}: the budget keeps no sample")
        warmed = task.proxy_home.cost_log.read() if task.proxy else []
        cost = selection_cost(warmed, place.cost_log.read(), entry, len(pool))
        save_pick(self.experiment, self.file, scores.positions[rows], cost)


class OracleTask:
    """Clean samples only, in ``picks/``."""

    needs: Sequence[Task] = ()

    def __init__(self, experiment: Experiment, budget: Budget, seed: int) -> None:
        self.experiment, self.budget, self.seed = experiment, budget, seed
        made_from = fingerprint.of_values(
            [experiment.pool.fingerprint(), experiment.defect_labels_key, dataclasses.asdict(budget), seed]
        )
        self.key = f"oracle {made_from}"
        self.name = f"oracle {budget.label} seed{seed}"
        self.file = experiment.home.path / "picks" / f"{file_name(self.name)}-{made_from[:8]}.json"

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        save_pick(self.experiment, self.file, self.experiment.clean(self.budget, self.seed), StageCost("select"))


def save_pick(experiment: Experiment, file: Path, kept: np.ndarray, cost: StageCost) -> None:
    """The positions as an array, and about them a JSON file; that it is there means both are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file.with_suffix(".npy")) as temporary:
        np.save(temporary, kept.astype(np.int64))
    about = {
        "kept": len(kept),
        "positions": hashlib.sha256(kept.astype(np.int64).tobytes()).hexdigest()[:16],
        "defects_kept": experiment.defects(kept),
        "cost": {
            "s": cost.device_s,
            "wall_s": cost.wall_s,
            "flops": cost.flops,
            "calls": cost.calls,
            "price": cost.price,
        },
    }
    atomic_write_text(file, json.dumps(about, indent=1))


NOTHING: dict[str, Any] = {"kept": 0, "positions": "", "defects_kept": {}, "cost": {}}
"""What the untrained model keeps."""


class TrainTask:
    """One training and its test, in ``planned_runs/``."""

    def __init__(self, experiment: Experiment, planned: PlannedRun) -> None:
        self.experiment, self.planned, self.name = experiment, planned, planned.name
        self.pick: SelectTask | OracleTask | None = None
        if planned.choice is not None:
            self.pick = SelectTask(
                experiment, experiment.scores(planned.choice, planned.seed), planned.budget or Budget(fraction=1.0)
            )
        elif planned.label != BASE:
            assert planned.budget is not None, "the oracle is planned with a budget"
            self.pick = OracleTask(experiment, planned.budget, planned.seed)
        self.needs: Sequence[Task] = [self.pick] if self.pick else []
        self.training = run_training(experiment.config, planned, len(experiment.pool))

    @cached_property
    def picked(self) -> dict[str, Any]:
        return json.loads(self.pick.file.read_text()) if self.pick else NOTHING

    @cached_property
    def key(self) -> str:
        made_from: dict[str, Any] = dict(self.experiment.training_fingerprints)
        if self.pick:
            made_from |= {
                "pool": self.experiment.pool.fingerprint()[:16],
                "kept": self.picked["positions"],
                "training": dataclasses.asdict(self.training),
                "seed": self.planned.seed,
            }
        return f"cell {fingerprint.of_values(made_from)}"

    @property
    def file(self) -> Path:
        """Another cell may have made it, under another name, from the same."""
        folder, end = self.experiment.home.path / "trained", f"-{self.key.removeprefix('planned ')}.json"
        return next(iter(folder.glob(f"*{end}")), folder / f"{self.name}{end}")

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        experiment, training, logger = self.experiment, StageCost("train", self.planned.label), LoggerOf()
        home, compute = experiment.home.path, dataclasses.replace(experiment.config.compute, progress=False)
        model = experiment.target(self.training)
        if self.pick:
            kept = np.load(self.pick.file.with_suffix(".npy"))
            with experiment.home.cost_log.stage("train", self.name) as training:
                data = experiment.data.select(kept)
                job = TrainingJob(compute, home, self.name, self.planned.seed, [logger], quiet=True)
                fit(model, data, job, training)
        model.to(first_device(compute))
        result = evaluate_model(model, experiment.questions, experiment.config.evaluation)
        log_metrics(compute, home, self.name, {f"accuracy/{k}": v for k, v in result.accuracy.items()}, logger)
        found = {
            "accuracy": result.accuracy,
            "correct": "".join("1" if c else "0" for c in result.predictions["correct"].to_pylist()),
            "training_s": training.device_s,
            "training_wall_s": training.wall_s,
            "training_flops": training.flops,
        }
        atomic_write_text(self.file, json.dumps(found, indent=1))
        log.info(f"{self.name}: accuracy {result.accuracy['all']:.3f}")

    def result(self) -> RunResult | None:
        """What the cell came to, from the files; ``None`` where it is not finished."""
        if not all(need.done() for need in self.needs) or not self.done():
            return None
        planned, picked = self.planned, self.picked
        defects, known = picked["defects_kept"], self.experiment.defect_labels is not None and picked["kept"] > 0
        return RunResult(
            label=planned.label,
            budget=planned.budget.label if planned.budget else "",
            protocol=planned.protocol,
            seed=planned.seed,
            variant=planned.variant,
            kept=picked["kept"],
            defects_kept=defects,
            defect_share=sum(defects.values()) / picked["kept"] if known else None,
            **{f"selection_{name}": value for name, value in picked["cost"].items()},
            **json.loads(self.file.read_text()),
        )
