"""From the planned runs of a benchmark to tasks. What several runs need, within or across variants, is one task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar, cast

from ostlight.benchmarking.experiment import Experiment
from ostlight.benchmarking.plan import PlannedRun
from ostlight.benchmarking.schedule import Task
from ostlight.benchmarking.tasks import OracleTask, ProxyTask, ScoreTask, SelectTask, TrainTask
from ostlight.config.budget import Budget
from ostlight.config.schema import BASE, SelectorChoice
from ostlight.pipeline import fingerprint
from ostlight.selection.registry import create

T = TypeVar("T", bound=Task)


def build_train_tasks(experiments: Sequence[Experiment]) -> list[TrainTask]:
    """Returns one task for each planned run, connected to the tasks that it needs."""
    tasks_by_key: dict[str, Task] = {}
    builders = [_TaskBuilder(experiment, tasks_by_key) for experiment in experiments]
    return [task for builder in builders for task in builder.train_tasks()]


def in_order(train_tasks: Sequence[TrainTask]) -> list[Task]:
    """Returns the tasks and all that they need: stages first, as the runs need them, each after its own needs."""
    stages: dict[Task, None] = {}

    def add(task: Task) -> None:
        for need in task.needs:
            add(need)
        stages.setdefault(task)

    for train_task in train_tasks:
        for need in train_task.needs:
            add(need)
    return [*stages, *train_tasks]


class _TaskBuilder:
    """Builds the tasks of one experiment.

    Args:
        tasks_by_key: tasks of all experiments so far, except trainings; grows.
    """

    def __init__(self, experiment: Experiment, tasks_by_key: dict[str, Task]) -> None:
        self.experiment, self._tasks_by_key = experiment, tasks_by_key
        self._proxies: dict[int, ProxyTask] = {}
        self._scores: dict[str, ScoreTask] = {}

    def train_tasks(self) -> list[TrainTask]:
        planned_runs = self.experiment.planned_runs
        return [TrainTask(self.experiment, planned, self._selection_task(planned)) for planned in planned_runs]

    def _selection_task(self, planned: PlannedRun) -> SelectTask | OracleTask | None:
        if planned.choice is not None:
            selector = create(planned.choice.name, planned.choice.options)
            seed = planned.seed if selector.stochastic else self.experiment.config.seed
            scores, budget = self._score_task(planned.choice, seed), planned.budget or Budget(fraction=1.0)
            select_seed = planned.seed if selector.stochastic_selection else seed
            return self._unique(SelectTask(self.experiment, scores, planned.choice, selector, budget, select_seed))
        if planned.label == BASE:
            return None
        assert planned.budget is not None, "the oracle is planned with a budget"
        return self._unique(OracleTask(self.experiment, planned.budget, planned.seed))

    def _score_task(self, choice: SelectorChoice, seed: int) -> ScoreTask:
        """Returns the task for all budgets; a dependency has the seed, and so the proxy, of what needs it."""
        key = fingerprint.of_values([choice.name, choice.shown, choice.options, seed])
        if key not in self._scores:
            selector = create(choice.name, choice.options)
            proxy = self._proxy_task(seed) if selector.uses_proxy else None
            # Without the label that the selector gives it, a dependency is named like a selector of the benchmark.
            choices = {c.shown: dataclasses.replace(c, label=None) for c in selector.dependencies()}
            dependencies = {label: self._score_task(c, seed) for label, c in choices.items()}
            task = ScoreTask(self.experiment, choice, selector, seed, proxy, dependencies)
            self._scores[key] = self._unique(task)
        return self._scores[key]

    def _proxy_task(self, seed: int) -> ProxyTask:
        if seed not in self._proxies:
            self._proxies[seed] = self._unique(ProxyTask(self.experiment, seed))
        return self._proxies[seed]

    def _unique(self, task: T) -> T:
        """Returns the first task that makes the same."""
        return cast(T, self._tasks_by_key.setdefault(task.key, task))
