"""Compares selectors: scores once, selects, trains and evaluates for every budget, protocol and seed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ostlight.benchmarking.experiment import Experiment
from ostlight.benchmarking.files import DEPENDENCY, READ_BACK, SEPARATIONS, WRITTEN, write_all, write_separations
from ostlight.benchmarking.on_ray import run_on_ray
from ostlight.benchmarking.resources import refuse_ranks, thread_count, threads_per_task, worker_environments
from ostlight.benchmarking.results import ResultRow, summarise
from ostlight.benchmarking.schedule import Failure, Schedule, Task, Waits, run_here
from ostlight.benchmarking.separation import Separation, measure_separation, separation_table
from ostlight.benchmarking.table import terminal_tables
from ostlight.benchmarking.task_graph import build_train_tasks, in_order
from ostlight.benchmarking.tasks import ScoreTask, SelectTask, TrainTask
from ostlight.benchmarking.worker_processes import run_in_processes
from ostlight.config.load import vary
from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_write_text
from ostlight.errors import BenchmarkError, ConfigError, PendingError
from ostlight.models.saved_files import NAME as SAVED_FILES
from ostlight.models.saved_files import note_saved
from ostlight.pipeline.ray_cluster import Place, connected
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress import phase
from ostlight.selection.registry import create_all, is_registered_here
from ostlight.training.loggers import log_comparison

log = logging.getLogger(__name__)


def benchmark(config: Config) -> list[ResultRow]:
    """Runs what is not finished yet, then writes the tables (``ostlight.benchmarking.files.WRITTEN``) of what is.

    Returns:
        The rows of the tables.

    Raises:
        ConfigError: no ``benchmark`` section, unknown options, or tasks that would each run on several devices.
        SelectorError: unknown selectors.
        RunChangedError: scores are there from images that are others now.
        BenchmarkError: tasks failed (the others are finished, and the tables hold them), or a worker process cannot be
            started.
        PendingError: no task failed, and some wait for something outside; the tables hold the others.
        RunInUseError: another process works in the run folder.
    """
    if config.benchmark is None:
        raise ConfigError(["the benchmark section is missing: name its selectors and budgets"])
    create_all(config.benchmark.selectors, "benchmark.selectors")  # refuses unknown options before any work
    variants = variant_configs(config)
    for variant in variants.values():
        refuse_ranks(variant)
    with RunFolder.owned(config, "benchmark") as folder:
        before = config_text(folder)
        folder.write_config()
        if before not in (None, config_text(folder)):  # until this one is finished, they would seem to be its own
            for name in {*WRITTEN, *SEPARATIONS, *READ_BACK, SAVED_FILES}:
                (folder.path / name).unlink(missing_ok=True)
        experiments = [Experiment(variant, folder, label) for label, variant in variants.items()]
        for experiment in experiments:
            experiment.refuse_unfit_labels()
        train_tasks = build_train_tasks(experiments)
        log.info(f"{len(train_tasks)} planned runs: selector x budget x protocol x seed, each trained and evaluated")
        failures = _run_tasks(config, experiments, wanted_tasks(config, train_tasks))
        rows = _write_results(config, folder, experiments, train_tasks)
    if failures and all(isinstance(failure.error, Waits) for failure in failures):
        raise PendingError(_describe(failures, "waiting"))
    if failures or (config.benchmark.train and not rows):
        raise BenchmarkError(_describe(failures, f"task{'s' if len(failures) != 1 else ''} failed"))
    return rows


def config_text(folder: RunFolder) -> str | None:
    """Returns the configuration that the folder was last used with; ``None`` where there is none."""
    file = folder.path / "config.yaml"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def variant_configs(config: Config) -> dict[str, Config]:
    """Returns the configuration of each variant by its label, which is empty where there are no variants."""
    assert config.benchmark is not None, "checked by benchmark"
    return {v.label: vary(config, v) for v in config.benchmark.variants} or {"": config}


def load_tasks(config: Config, place: Place | None = None) -> list[Task]:
    """Returns the tasks of a benchmark as its worker processes see them.

    Args:
        place: what each has on a Ray cluster.
    """
    compute = place.compute(config.compute) if place else replace(config.compute, progress=False)
    quiet = replace(config, compute=compute)
    folder = RunFolder.of(quiet)
    experiments = [Experiment(variant, folder, label) for label, variant in variant_configs(quiet).items()]
    return wanted_tasks(config, build_train_tasks(experiments))


def wanted_tasks(config: Config, train_tasks: Sequence[TrainTask]) -> list[Task]:
    """Returns the trainings and what they need; without the trainings, and what only the oracle needs, where nothing is
    to be trained."""
    assert config.benchmark is not None, "checked by benchmark"
    if config.benchmark.train:
        return in_order(train_tasks)
    selected = [task for task in train_tasks if isinstance(task.selection, SelectTask)]
    return [task for task in in_order(selected) if not isinstance(task, TrainTask)]


def _run_tasks(config: Config, experiments: Sequence[Experiment], tasks: Sequence[Task]) -> list[Failure]:
    """Runs the tasks whose files are missing, on a cluster, in worker processes or here, and returns what failed."""
    again = [task for task in tasks if isinstance(task, ScoreTask) and task.has_retries()]
    schedule, configs = Schedule(tasks, again), [experiment.config for experiment in experiments]
    on_ray = config.compute.engine == "ray"
    if on_ray and not again and all(task.is_done() for task in tasks):
        return []
    environments = [] if on_ray or any(map(_needs_this_process, configs)) else worker_environments(configs)
    with phase("benchmark", len(tasks), "tasks") as ended:
        schedule.on_end, ended.estimate = ended.advance, schedule.seconds_left
        if on_ray:
            with connected(config.compute):
                place = Place.of(config.compute)
                run_on_ray(schedule, tasks, partial(load_tasks, config, place), place)
        elif environments:
            run_in_processes(schedule, tasks, partial(load_tasks, config), environments)
        else:
            with thread_count(threads_per_task(configs[0])):
                run_here(schedule)
    return schedule.failures


def _needs_this_process(config: Config) -> bool:
    """Whether a selector, or one that its options name, was registered by the running program."""
    assert config.benchmark is not None, "checked by benchmark"
    named = [(choice.name, choice.options) for choice in config.benchmark.selectors]
    return any(is_registered_here(text) for text in _texts(named))


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        yield from _texts(list(values.values()))
    elif isinstance(values, Sequence):
        for value in values:
            yield from _texts(value)


def _write_results(
    config: Config, folder: RunFolder, experiments: Sequence[Experiment], train_tasks: Sequence[TrainTask]
) -> list[ResultRow]:
    """Writes and prints the tables of the finished runs; does nothing where none is finished."""
    assert config.benchmark is not None, "checked by benchmark"
    results = [result for task in train_tasks if (result := task.result()) is not None]
    separated = _separations(train_tasks, config.benchmark.auroc_within)
    if not results and not separated:
        return []
    console = Console(highlight=False)
    baseline, seeds = config.benchmark.compared_to, len(config.benchmark.seeds)
    title = f"{config.name}: {len(experiments[0].pool):,} records"
    written: list[str] = []
    (folder.path / SAVED_FILES).unlink(missing_ok=True)
    if separated:
        written += write_separations(separated, folder.path)
        console.print(separation_table(separated).rich(f"{title}: which scores separate clean from defective records?"))
    rows = summarise(results, baseline)
    title = f"{title}, {seeds} seed{'s' * (seeds != 1)}"
    if rows:
        written += write_all(results, rows, baseline, folder.path, title)
    index = "".join(json.dumps(entry) + "\n" for entry in _score_index(train_tasks, folder.path))
    atomic_write_text(folder.score_index, index)
    note_saved(folder.path, READ_BACK)
    if rows:
        log_comparison(config.compute, folder.path)
    for table in terminal_tables(rows, baseline, title) if rows else []:
        console.print(table)
    log.info(f"written to {folder.path}: {', '.join(written)}")
    return rows


def _separations(train_tasks: Sequence[TrainTask], within: Sequence[str]) -> list[Separation]:
    """Returns one row for each selector and variant whose first selection is there, in their order; none where there
    are no defect labels."""
    rows: dict[tuple[str, str], Separation] = {}
    for task in train_tasks:
        key = (task.planned.variant, task.planned.label)
        select, labels = task.selection, task.experiment.defect_labels
        if labels is None or key in rows or not isinstance(select, SelectTask):
            continue
        if select.scores.is_done() and select.is_done():
            cost = task.selection_facts["cost"]
            measured = measure_separation(select.scores.folder.scores, labels, within)
            rows[key] = Separation(*key, *measured, cost["flops"], cost["s"])
    return list(rows.values())


def _score_index(train_tasks: Sequence[TrainTask], folder: Path) -> list[dict[str, Any]]:
    """Returns ``{scores, selector, variant, budget, selection}`` of each selection.

    ``scores`` is a folder within the benchmark's, which several selections may share; ``selection`` is the stem of the
    file in ``selections/``. Of scores that these were computed from, ``{scores, selector, variant, dependency}``.
    """
    entries: list[dict[str, Any]] = []
    for task in train_tasks:
        if not isinstance(task.selection, SelectTask):
            continue
        entry = {
            "scores": str(task.selection.scores.folder.path.relative_to(folder)),
            "selector": task.planned.label,
            "variant": task.planned.variant,
            "budget": task.selection.budget.label,
            "selection": task.selection.file.stem,
        }
        if entry not in entries:
            entries.append(entry)
        for one in task.selection.scores.with_dependencies()[1:]:
            needed = {"scores": str(one.folder.path.relative_to(folder)), "selector": task.planned.label}
            entry_of_needed = needed | {"variant": task.planned.variant, DEPENDENCY: True}
            if entry_of_needed not in entries:
                entries.append(entry_of_needed)
    return entries


def _describe(failures: Sequence[Failure], what: str) -> str:
    lines = [f"{len(failures)} {what}:"]
    for failure in failures:
        blocked = f" ({len(failure.blocked)} more depend on it)" if failure.blocked else ""
        lines.append(f"  - {failure.task}: {failure.error}{blocked}")
    return "\n".join(lines)
