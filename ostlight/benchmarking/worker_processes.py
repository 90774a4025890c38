"""Runs tasks in processes of this machine, each on a device or on cores of its own.

Torch is not imported here at the top: a worker must set its environment before torch reads it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection

from ostlight.benchmarking.schedule import Schedule, Task, missing_file, run_task, run_tasks
from ostlight.errors import BenchmarkError
from ostlight.logs import ROOT

log = logging.getLogger(__name__)

SPAWN = multiprocessing.get_context("spawn")

CRASHED = "crashed: its worker process died (out of memory, killed, or a fault in native code)"

LoadTasks = Callable[[], Sequence[Task]]
"""Returns the same tasks in the same order in every process; can be pickled."""


def run_in_processes(
    schedule: Schedule, tasks: Sequence[Task], load_tasks: LoadTasks, environments: Sequence[Mapping[str, str]]
) -> None:
    """Runs all tasks, with one process for each environment.

    A process that dies fails the task it was running, and another takes its place. All processes end when this one
    does, or when it is interrupted.

    Args:
        tasks: those of the schedule.
        load_tasks: called once in each process.
        environments: environment variables of each process.

    Raises:
        BenchmarkError: a process cannot be started.
    """
    processes = _WorkerProcesses(tasks, [_Worker(load_tasks, environment) for environment in environments])
    try:
        run_tasks(schedule, processes)
    except BaseException:
        processes.kill()
        raise
    finally:
        processes.stop()


class _WorkerProcesses:
    """An engine for ``run_tasks``: as many tasks at a time as there are workers."""

    def __init__(self, tasks: Sequence[Task], workers: Sequence[_Worker]) -> None:
        self._tasks, self._workers, self._idle = tasks, workers, list(workers)
        self._busy: dict[Task, _Worker] = {}

    def has_room(self) -> bool:
        return bool(self._idle)

    def start(self, task: Task) -> Future[str | None]:
        worker = self._busy[task] = self._idle.pop(0)
        return worker.start(self._tasks.index(task))

    def outcome(self, task: Task, future: Future[str | None]) -> str | None:
        worker = self._busy.pop(task)
        self._idle.append(worker)
        error = worker.outcome(future)
        if error == CRASHED:
            log.error(f"failed: {task.name}: {CRASHED}")
        return error or missing_file(task)

    def kill(self) -> None:
        for worker in self._busy.values():
            worker.kill()

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()


class _Worker:
    """A pool of one process, which is started when it is first needed, and again after it has died.

    One pool for all would fail the tasks of every process when one of them dies, and gives all the same environment.
    """

    def __init__(self, load_tasks: LoadTasks, environment: Mapping[str, str]) -> None:
        self._load_tasks, self._environment = load_tasks, environment
        self._pool: ProcessPoolExecutor | None = None

    def start(self, index: int) -> Future[str | None]:
        """Starts the task at this position of ``load_tasks()``."""
        if self._pool is not None:
            try:
                return self._pool.submit(_run, index)
            except BrokenProcessPool:  # the process has died since its last task
                self.stop()
        records, sender = SPAWN.Pipe(duplex=False)
        level = logging.getLogger(ROOT).getEffectiveLevel()
        self._pool = ProcessPoolExecutor(1, SPAWN, _prepare, (sender, self._environment, level))
        self._loaded = self._pool.submit(_load, self._load_tasks)
        sender.close()  # the process, which has been started by now, has its own: records end when it does
        self._relay = threading.Thread(target=_relay, args=(records,), daemon=True)
        self._relay.start()
        return self._pool.submit(_run, index)

    def outcome(self, future: Future[str | None]) -> str | None:
        """Returns why the task failed; ``None`` where it succeeded.

        Raises:
            BenchmarkError: the process could not load the tasks.
        """
        try:
            problem = self._loaded.result()
        except BrokenProcessPool:
            problem = CRASHED
        if problem is not None:
            raise BenchmarkError(
                f"a worker process could not start ({problem}). A script that calls ostlight.benchmark must do "
                "so under `if __name__ == '__main__':`. With benchmark.workers=1 no worker processes are needed"
            )
        try:
            return future.result()
        except BrokenProcessPool:
            self.stop()
            return CRASHED

    def kill(self) -> None:
        """Ends the process in the middle of its task."""
        # From Python 3.14 on this is `kill_workers`.
        for process in list(self._pool._processes.values()) if self._pool else []:
            process.kill()

    def stop(self) -> None:
        """Waits for the process to end, and for its last log record."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._relay.join()
            self._pool = None


def _relay(records: Connection) -> None:
    """Hands a process's log records to the loggers of this one, until it ends."""
    with records, suppress(EOFError, OSError):
        while True:
            record: logging.LogRecord = records.recv()
            logging.getLogger(record.name).handle(record)


class _Sender:
    """The queue of a ``QueueHandler``: a connection that several threads may write to."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def put_nowait(self, record: logging.LogRecord) -> None:
        with self._lock:
            self._connection.send(record)


_tasks: Sequence[Task] = ()
"""In a worker process: what it has loaded."""


def _prepare(records: Connection, environment: Mapping[str, str], level: int) -> None:
    """The first that a worker process does."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set by the command line, not by other programs
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    logger = logging.getLogger(ROOT)
    logger.handlers = [QueueHandler(_Sender(records))]  # type: ignore[arg-type]
    logger.setLevel(level)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))


def _load(load_tasks: LoadTasks) -> str | None:
    """Loads the tasks; returns why that failed."""
    global _tasks
    try:
        _tasks = load_tasks()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _run(index: int) -> str | None:
    return run_task(_tasks[index])


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the benchmark"
    parent.join()
    os._exit(1)
