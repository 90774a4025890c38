"""Runs tasks on the nodes of a Ray cluster, each on a device or on a core of its own."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ostlight.benchmarking.schedule import Schedule, Task, run_task, run_tasks
from ostlight.benchmarking.worker_processes import LoadTasks
from ostlight.pipeline.ray_cluster import Driver, Place, handle, recorded

log = logging.getLogger(__name__)

LOST_TIMES = 3
"""A task is tried again after its process was lost, with its node or alone, that many times."""

VISIBLE_S = 60.0
"""Longest time until this node sees a file that another one has written; network file systems keep what they saw."""

Outcome = tuple[str | None, list[logging.LogRecord]]
"""Why a task failed, ``None`` where it succeeded, and what it logged."""


@dataclass(frozen=True)
class Work:
    """What the processes of one benchmark share.

    Attributes:
        load_tasks: called once in each process.
        id: of this benchmark.
    """

    driver: Driver
    load_tasks: LoadTasks
    id: str


def run_on_ray(schedule: Schedule, tasks: Sequence[Task], load_tasks: LoadTasks, place: Place) -> None:
    """Runs all tasks, as many at a time as the connected cluster has places for.

    A task whose node leaves is run again on another. Nodes that join get tasks at once.

    Args:
        tasks: those of the schedule.
        load_tasks: called once in each process; returns the same tasks in the same order.
        place: what each task gets.
    """
    import ray

    work = ray.put(Work(Driver.here(), load_tasks, uuid.uuid4().hex))
    engine = _Cluster(tasks, work, place, schedule.again)
    try:
        run_tasks(schedule, engine)
    finally:
        engine.stop()


class _Cluster:
    """An engine for ``run_tasks``. All tasks that can run are handed to Ray, which starts them where there is room.

    What a task needs is a file in the run folder by the time it is submitted, so that no object of Ray's is worth
    handing on, or has to be made again when a node is lost.
    """

    def __init__(self, tasks: Sequence[Task], work: Any, place: Place, again: Collection[Task]) -> None:
        import ray

        self._again = again
        self._indices = {id(task): k for k, task in enumerate(tasks)}
        self._work = work
        self._run = ray.remote(max_retries=LOST_TIMES, **place.options)(run_on_node)
        self._submitted: dict[Task, Any] = {}

    def has_room(self) -> bool:
        return True

    def start(self, task: Task) -> Future[Outcome]:
        index, again = self._indices[id(task)], task in self._again
        reference = self._run.options(name=task.name).remote(self._work, index, task.name, task.key, again)
        self._submitted[task] = reference
        future: Future[Outcome] = reference.future()
        return future

    def outcome(self, task: Task, future: Future[Outcome]) -> str | None:
        from ray.exceptions import RayError, RayTaskError

        del self._submitted[task]
        try:
            error, records = future.result()
        except RayTaskError as failure:  # before the task's own code began: what it is given cannot be imported, say
            error, records = f"a process of the cluster could not start it: {failure}", []
            log.error(f"failed: {task.name}: {error}")
        except RayError as lost:
            error, records = f"lost {LOST_TIMES + 1} times; the last time: {lost}", []
            log.error(f"failed: {task.name}: {error}")
        handle(records)
        if error is None and not _becomes_visible(task):
            error = f"its file is not there {VISIBLE_S:.0f} s after it ended; every node must mount the run folder"
            log.error(f"failed: {task.name}: {error}")
        return error

    def stop(self) -> None:
        """Cancels what is still running, as it is after an error or an interrupt."""
        import ray

        for reference in self._submitted.values():
            ray.cancel(reference, force=True)


def _becomes_visible(task: Task) -> bool:
    deadline = time.monotonic() + VISIBLE_S
    while not task.is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


_loaded: dict[str, Sequence[Task]] = {}
"""In a process of the cluster: the tasks of the benchmark that it works for."""


def run_on_node(work: Work, index: int, name: str, key: str, again: bool = False) -> Outcome:
    """Runs one task in a process of the cluster; what it left before its process was lost is taken up.

    Args:
        again: though its file is there.
    """
    with recorded() as records:
        try:
            work.driver.enter()
            if work.id not in _loaded:
                _loaded.clear()
                _loaded[work.id] = work.load_tasks()
            task = _loaded[work.id][index]
        except Exception as error:
            return f"node {socket.gethostname()} could not load the tasks: {type(error).__name__}: {error}", records
        if (task.name, task.key) != (name, key):
            return (
                f"node {socket.gethostname()} would make something else of it ({task.name}, {task.key}, instead of "
                f"{key}): its packages, its code or the files it sees are others",
                records,
            )
        return None if task.is_done() and not again else run_task(task), records
