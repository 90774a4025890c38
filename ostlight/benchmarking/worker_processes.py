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
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from ostlight.benchmarking.schedule import Schedule, Task, run_task
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
    workers = [_Worker(load_tasks, environment) for environment in environments]
    idle, running = list(workers), dict[object, tuple[_Worker, Task]]()
    try:
        while True:
            while idle and (task := schedule.next_task()) is not None:
                worker = idle.pop(0)
                running[worker.start(tasks.index(task))] = worker, task
            if not running:
                break
            for connection in wait(list(running)):  # type: ignore[arg-type]
                worker, task = running[connection]
                if (outcome := worker.receive()) is not None:
                    del running[connection]
                    if outcome.error == CRASHED:
                        log.error(f"failed: {task.name}: {CRASHED}")
                    schedule.finish(task, outcome.error)
                    idle.append(worker)
    except BaseException:
        for worker, _ in running.values():
            worker.kill()
        raise
    finally:
        for worker in workers:
            worker.stop()


@dataclass(frozen=True)
class _Outcome:
    """What a process sends when it has loaded the tasks, and after each task; ``error`` says why that failed."""

    error: str | None


class _Worker:
    """A process that runs one task at a time. It is started when it is first needed, and again after it has died.

    One pipe carries positions of tasks to the process, and its log records and outcomes back.
    """

    def __init__(self, load_tasks: LoadTasks, environment: Mapping[str, str]) -> None:
        self._load_tasks, self._environment = load_tasks, environment
        self._process: SpawnProcess | None = None

    def start(self, index: int) -> Connection:
        """Starts the task at this position of ``load_tasks()``; returns the connection that messages arrive on."""
        if self._process is None or not self._process.is_alive():
            self.stop()
            self._connection, child_connection = SPAWN.Pipe()
            level = logging.getLogger(ROOT).getEffectiveLevel()
            self._process = SPAWN.Process(target=_work, args=(child_connection, self._environment, level))
            self._process.start()
            child_connection.close()  # the process has its own copy: messages end when it does
            self._is_loading = True
            self._send(self._load_tasks)
        self._send(index)
        return self._connection

    def receive(self) -> _Outcome | None:
        """Handles the next message; returns the outcome where it ends the task.

        Raises:
            BenchmarkError: the process could not load the tasks.
        """
        try:
            message: logging.LogRecord | _Outcome = self._connection.recv()
        except (EOFError, OSError):
            self.stop()
            message = _Outcome(CRASHED)
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
            return None
        if not self._is_loading:
            return message
        if message.error is not None:
            raise BenchmarkError(
                f"a worker process could not start ({message.error}). A script that calls ostlight.benchmark must do "
                "so under `if __name__ == '__main__':`. With benchmark.workers=1 no worker processes are needed"
            )
        self._is_loading = False
        return None

    def kill(self) -> None:
        """Ends the process in the middle of its task."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Waits for the process to end, as it does once nothing more can be sent to it."""
        if self._process is not None:
            self._connection.close()
            self._process.join()
            self._process = None

    def _send(self, message: object) -> None:
        with suppress(OSError):  # a process that has died is noticed when its answer is read
            self._connection.send(message)


class _Sender:
    """The queue of a ``QueueHandler``: a connection that several threads may write to."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def put_nowait(self, message: object) -> None:
        with self._lock:
            self._connection.send(message)


def _work(connection: Connection, environment: Mapping[str, str], level: int) -> None:
    """Runs the tasks whose positions arrive, until the other end of the connection is closed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set by the command line, not by other programs
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sender, logger = _Sender(connection), logging.getLogger(ROOT)
    logger.handlers = [QueueHandler(sender)]  # type: ignore[arg-type]
    logger.setLevel(level)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    try:
        tasks = connection.recv()()
    except Exception as error:
        return sender.put_nowait(_Outcome(f"{type(error).__name__}: {error}"))
    sender.put_nowait(_Outcome(None))
    with suppress(EOFError):
        while True:
            sender.put_nowait(_Outcome(run_task(tasks[connection.recv()])))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the benchmark"
    parent.join()
    os._exit(1)
