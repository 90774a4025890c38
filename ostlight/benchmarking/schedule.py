"""Tasks in the order of their needs; one that fails stops only the tasks that need it."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol, TypeVar

from ostlight.errors import OstlightError, PendingError

log = logging.getLogger(__name__)


class Task(Protocol):
    """A piece of work that leaves a file.

    Attributes:
        name: for people.
        kind: tasks of one kind take about as long.
        needs: tasks that must be done first.
        key: fingerprint of everything the file is made from; two tasks with the same key make the same file. Read only
            once the needs are done.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def needs(self) -> Sequence[Task]: ...
    @property
    def key(self) -> str: ...

    def is_done(self) -> bool:
        """Whether the file exists. Called only once the needs are done."""

    def run(self) -> None:
        """Makes the file."""


class Waits(str):
    """Why a task has not ended although nothing failed: it waits for something outside, such as a batch API's replies.
    The same command goes on afterwards."""


@dataclass
class Failure:
    """A task that failed, or waits for something outside.

    Attributes:
        task: its name.
        error: the error's message; ``Waits`` where nothing failed.
        blocked: names of the tasks that cannot run because of it.
    """

    task: str
    error: str
    blocked: list[str] = field(default_factory=list)


class Schedule:
    """Which task is next, and which have failed.

    Args:
        tasks: in the order in which they are preferred, each after the tasks that it needs.
        again: tasks that are run though their files are there.

    Attributes:
        failures: in the order in which they happened.
        on_end: called for every task that is done, failed, or waits for one that failed.
    """

    def __init__(self, tasks: Sequence[Task], again: Collection[Task] = ()) -> None:
        self._waiting = list(tasks)
        self.again = again
        self._done: set[Task] = set()
        self._running: dict[str, tuple[Task, float]] = {}
        self._seconds_by_kind: dict[str, list[float]] = {}
        self._most_running = 1
        self._failure_of_task: dict[Task, Failure] = {}
        self.failures: list[Failure] = []
        self.on_end: Callable[[], None] = lambda: None

    def next_task(self) -> Task | None:
        """Returns the first task that can run now and whose file does not exist yet; ``None`` while there is none."""
        for task in list(self._waiting):
            failures = [self._failure_of_task[need] for need in task.needs if need in self._failure_of_task]
            if failures:
                failures[0].blocked.append(task.name)
                self._failure_of_task[task] = failures[0]
                self._waiting.remove(task)
                self.on_end()
            elif self._done.issuperset(task.needs) and task.key not in self._running:
                self._waiting.remove(task)
                if task in self.again or not task.is_done():
                    self._running[task.key] = task, time.monotonic()
                    self._most_running = max(self._most_running, len(self._running))
                    return task
                self._done.add(task)
                self.on_end()
        return None

    def finish(self, task: Task, error: str | None) -> None:
        """Records that a task has ended; ``error`` says why it failed."""
        _, started = self._running.pop(task.key)
        self.on_end()
        if error is None:
            self._seconds_by_kind.setdefault(task.kind, []).append(time.monotonic() - started)
            self._done.add(task)
        else:
            self._failure_of_task[task] = Failure(task.name, error)
            self.failures.append(self._failure_of_task[task])

    def seconds_left(self, now: float) -> float | None:
        """Returns how long the rest will take, by how long tasks of each kind took; ``None`` until one of every kind
        that is left has been measured. May be called from another thread."""
        means = {kind: fmean(seconds) for kind, seconds in list(self._seconds_by_kind.items())}
        waiting, running = list(self._waiting), list(self._running.values())
        if not {*means}.issuperset(task.kind for task in [*waiting, *(task for task, _ in running)]):
            return None
        rest = sum(max(0.0, means[task.kind] - (now - started)) for task, started in running)
        return (rest + sum(means[task.kind] for task in waiting)) / self._most_running


T = TypeVar("T")


class Engine(Protocol[T]):
    """Where tasks run beside each other; ``T`` is what each sends back."""

    def has_room(self) -> bool:
        """Whether another task can be started now."""

    def start(self, task: Task) -> Future[T]:
        """Starts a task; the future is done when it has ended, however it did."""

    def outcome(self, task: Task, future: Future[T]) -> str | None:
        """Returns why a task that has ended failed; ``None`` where it succeeded."""


def run_tasks(schedule: Schedule, engine: Engine[T]) -> None:
    """Runs all tasks, as many at a time as the engine has room for."""
    running: dict[Future[T], Task] = {}
    while True:
        while engine.has_room() and (task := schedule.next_task()) is not None:
            running[engine.start(task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            schedule.finish(task, engine.outcome(task, future))


def run_here(schedule: Schedule) -> None:
    """Runs all tasks in this process, one after the other."""
    while (task := schedule.next_task()) is not None:
        schedule.finish(task, run_task(task) or missing_file(task))


def missing_file(task: Task) -> str | None:
    """Logs and returns why a task has failed that ended without an error: its file is not there."""
    if task.is_done():
        return None
    message = "it ended without its file: code or data changed while the benchmark ran; run the same command again"
    log.error(f"failed: {task.name}: {message}")
    return message


def run_task(task: Task) -> str | None:
    """Runs a task and logs its failure; returns the error's message, ``Waits`` where it waits for something outside,
    ``None`` where it succeeded."""
    try:
        task.run()
    except PendingError as error:
        log.warning(f"waiting: {task.name}: {error}")
        return Waits(error)
    except Exception as error:
        is_expected = isinstance(error, OstlightError)
        message = str(error) if is_expected else f"{type(error).__name__}: {error}"
        log.error(f"failed: {task.name}: {message}", exc_info=not is_expected)
        return message
    finally:
        # A trainer and its model refer to each other: gigabytes, and too few objects for Python to look for them.
        gc.collect()
    return None
