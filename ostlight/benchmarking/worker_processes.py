"""Runs tasks in processes of this machine, each on a device or on cores of its own.

Torch is not imported here at the top: a worker must set its environment before torch reads it.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ostlight.benchmarking.schedule import Schedule, Task, run_task
from ostlight.errors import BenchmarkError

log = logging.getLogger(__name__)

SPAWN = multiprocessing.get_context("spawn")
ROOT_LOGGER = "ostlight"

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
    alive_reader, alive_writer = SPAWN.Pipe(duplex=False)
    workers = [Worker(load_tasks, environment, alive_reader) for environment in environments]
    idle, running = list(workers), dict[Future[str | None], tuple[Worker, Task]]()
    try:
        while True:
            while idle and (task := schedule.next_task()) is not None:
                worker = idle.pop(0)
                running[worker.submit(tasks.index(task))] = worker, task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, task = running.pop(future)
                schedule.finish(task, worker.result(future, task))
                idle.append(worker)
    except BaseException:
        alive_writer.close()
        raise
    finally:
        for worker in workers:
            worker.shut_down()
        alive_reader.close()
        alive_writer.close()


class Worker:
    """A process that runs one task at a time. It is started when it is first needed, and again after it has died.

    Args:
        load_tasks: called in the process.
        environment: variables to set in the process.
        alive: the process ends as soon as the other end of this pipe is closed.
    """

    def __init__(self, load_tasks: LoadTasks, environment: Mapping[str, str], alive: Connection) -> None:
        self.load_tasks, self.environment, self.alive = load_tasks, environment, alive
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, index: int) -> Future[str | None]:
        """Starts the task at this position of ``load_tasks()``."""
        if self._executor is not None:
            with suppress(BrokenProcessPool):
                return self._executor.submit(_run_task, index)
            self.shut_down()  # it died while it had nothing to do
        return self._started().submit(_run_task, index)

    def result(self, future: Future[str | None], task: Task) -> str | None:
        """Returns why the task failed; ``None`` where it succeeded.

        Raises:
            BenchmarkError: the process ended before it could run a task.
        """
        start_error = self._loaded.exception()
        if start_error is not None:
            raise BenchmarkError(
                f"a worker process could not start ({type(start_error).__name__}: {start_error}). A script that calls "
                "ostlight.benchmark must do so under `if __name__ == '__main__':`. With benchmark.workers=1 no worker "
                "processes are needed"
            ) from start_error
        try:
            return future.result()
        except (BrokenProcessPool, SystemExit):
            self.shut_down()
            error = "crashed: its worker process died (out of memory, killed, or a fault in native code)"
            log.error(f"failed: {task.name}: {error}")
            return error

    def shut_down(self) -> None:
        """Waits for the process to end."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._listener.stop()
            self._connection.close()
            self._executor = None

    def _started(self) -> ProcessPoolExecutor:
        self._connection, child_connection = SPAWN.Pipe(duplex=False)
        level = logging.getLogger(ROOT_LOGGER).getEffectiveLevel()
        arguments = (self.environment, self.alive, child_connection, level)
        self._executor = ProcessPoolExecutor(1, SPAWN, _initialise_worker, arguments)
        self._loaded = self._executor.submit(_load_tasks, self.load_tasks)
        child_connection.close()  # the process has its own copy; what it logs ends when it does
        self._listener = _PipeListener(self._connection, _Relay())  # type: ignore[arg-type]
        self._listener.start()
        return self._executor


class _PipeHandler(logging.handlers.QueueHandler):
    """Sends records to the parent. A pipe has no lock that a dying process could leave behind, as a queue has."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]


class _PipeListener(logging.handlers.QueueListener):
    """Handles a process's records until the process ends."""

    def dequeue(self, block: bool) -> Any:
        try:
            return self.queue.recv()  # type: ignore[attr-defined]
        except (EOFError, OSError):
            return None  # what stops a listener

    def enqueue_sentinel(self) -> None:
        """Nothing: the end of the pipe stops it."""


class _Relay(logging.Handler):
    """Hands records to the loggers of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


_tasks: list[Task] = []
"""Of a worker process."""


def _initialise_worker(environment: Mapping[str, str], alive: Connection, records: Connection, level: int) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    threading.Thread(target=_exit_with_parent, args=[alive], daemon=True).start()
    logger = logging.getLogger(ROOT_LOGGER)
    logger.handlers = [_PipeHandler(records)]  # type: ignore[arg-type]
    logger.setLevel(level)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))


def _exit_with_parent(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)


def _load_tasks(load_tasks: LoadTasks) -> None:
    _tasks[:] = load_tasks()


def _run_task(index: int) -> str | None:
    return run_task(_tasks[index])
