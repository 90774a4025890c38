"""Selectors x budgets x protocols x seeds: score once, pick, train, evaluate, compare."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ostlight.benchmarking.experiment import Experiment
from ostlight.benchmarking.files import WRITTEN, write_all
from ostlight.benchmarking.results import ResultRow, summarise
from ostlight.benchmarking.scheduler import Failure, Room, failures, unsettled, work
from ostlight.benchmarking.tasks import SelectTask, TrainTask
from ostlight.benchmarking.terminal import rich_tables
from ostlight.benchmarking.workers import computing_with, places, refuse_ranks, share, threads
from ostlight.config.load import vary
from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_write_text
from ostlight.errors import BenchmarkError, ConfigError
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.registry import is_registered_here
from ostlight.training.loggers import log_comparison

log = logging.getLogger(__name__)


def benchmark(config: Config) -> list[ResultRow]:
    """Runs what is not finished yet, then writes the tables (``ostlight.benchmarking.files.WRITTEN``) of what is.

    Several processes may run one benchmark in one folder: each stage and each cell is done by one of them.

    Returns:
        The table's lines.

    Raises:
        ConfigError: no ``benchmark`` section; tasks that would each run on several devices.
        BenchmarkError: cells failed; the others are finished and the tables hold them. Or no worker can be started.
    """
    if config.benchmark is None:
        raise ConfigError(["the benchmark section is missing: name its selectors and budgets"])
    since = time.time()
    variants = configs_of(config).values()
    for varied in variants:
        refuse_ranks(varied)
    folder = RunFolder.of(config)
    folder.write_config()
    room = Room(folder.path / "work", since)
    experiments = experiments_of(config, folder, room)
    tasks = [task for experiment in experiments for task in experiment.tasks]
    planned_runs = [planned for experiment in experiments for planned in experiment.train_tasks]
    log.info(f"{len(planned_runs)} cells: selector x budget x protocol x seed, each trained and tested on its own")
    if unsettled(tasks, room):
        here = any(map(_needs_this_process, variants))
        configs = [experiment.config for experiment in experiments]
        share(folder.path, room, [] if here else places(configs), lambda: unsettled(tasks, room))
        with computing_with(threads(configs[0])):
            work(tasks, room)
    results = [result for planned in planned_runs if (result := planned.result()) is not None]
    broken = failures(tasks, room)
    if not results:
        raise BenchmarkError(_told(broken))
    baseline = config.benchmark.compared_to
    lines = summarise(results, baseline)
    count = len(config.benchmark.seeds)
    title = f"{config.name}: {len(experiments[0].pool):,} records, {count} seed{'s' * (count != 1)}"
    write_all(results, lines, baseline, folder.path, title)
    atomic_write_text(folder.scored, "".join(json.dumps(row) + "\n" for row in _scored(planned_runs, folder.path)))
    log_comparison(config.compute, folder.path)
    console = Console(highlight=False)
    for table in rich_tables(lines, baseline, title, console.width):
        console.print(table)
    log.info(f"written to {folder.path}: {', '.join(WRITTEN)}")
    if broken:
        raise BenchmarkError(_told(broken))
    return lines


def _scored(planned_runs: Sequence[TrainTask], home: Path) -> list[dict[str, Any]]:
    """``{scores, proxy, selector, variant, budget, pick}``: whose scores each folder holds, the folder of the warm-up
    before, if there was one, and the file of what was kept; several may share each."""
    made = [(planned.planned, pick) for planned in planned_runs if isinstance(pick := planned.pick, SelectTask)]
    rows = [
        {
            "scores": str(pick.scores.place.path.relative_to(home)),
            "proxy": str(proxy.home.path.relative_to(home)) if (proxy := pick.scores.proxy) and proxy.warms else None,
            "selector": planned.label,
            "variant": planned.variant,
            "budget": pick.budget.label,
            "pick": pick.file.stem,
        }
        for planned, pick in made
    ]
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def experiments_of(config: Config, folder: RunFolder, room: Room) -> list[Experiment]:
    """One for each variant; one where there are none."""
    return [Experiment(varied, folder, room, label) for label, varied in configs_of(config).items()]


def configs_of(config: Config) -> dict[str, Config]:
    """The configuration of each experiment by its variant's label, which is empty where there are no variants."""
    assert config.benchmark is not None, "checked by benchmark"
    return {v.label: vary(config, v) for v in config.benchmark.variants} or {"": config}


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


def work_on(config: Config, since: float, go_on: Callable[[], bool]) -> None:
    """What a worker does: takes tasks until none is left."""
    folder = RunFolder.of(config)
    room = Room(folder.path / "work", since)
    quiet = replace(config, compute=replace(config.compute, progress=False))
    experiments = experiments_of(quiet, folder, room)
    work([task for experiment in experiments for task in experiment.tasks], room, go_on)


def _told(broken: dict[str, tuple[Failure, list[str]]]) -> str:
    lines = [f"{len(broken)} task{'s' if len(broken) != 1 else ''} failed:"]
    for failure, names in broken.values():
        others = len([n for n in names if n != failure.task])
        held_up = f" ({others} more wait for it)" if others else ""
        lines.append(f"  - {failure.task}: {failure.error}{held_up}")
    return "\n".join(lines)
