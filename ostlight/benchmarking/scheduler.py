"""Tasks that processes share by lock files: each is done once, any may be killed, one that fails stops no other."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from ostlight.data.atomic import atomic_write_text
from ostlight.errors import OstlightError

log = logging.getLogger(__name__)

PAUSE_S = 0.3
"""Between two looks at what other processes are doing."""


class Task(Protocol):
    """Something that leaves a file.

    Attributes:
        name: for people.
        needs: tasks that come first.
        key: names what the task makes, by what it is made from; two tasks of one key make the same thing. Asked only
            once the needs are done.
    """

    name: str
    needs: Sequence[Task]

    @property
    def key(self) -> str: ...

    def done(self) -> bool:
        """Whether its file is there. Asked only once the needs are done."""

    def run(self) -> None:
        """Makes the file."""


@dataclass(frozen=True)
class Failure:
    """A task that failed: which, why, and where in the code."""

    task: str
    error: str
    trace: str = ""


class Room:
    """Where processes that work on the same tasks leave word for each other.

    Args:
        path: a folder they all see.
        since: seconds since the epoch; failures before that are forgotten, so a new start tries again.
    """

    def __init__(self, path: Path, since: float) -> None:
        self.path, self.since = path, since
        for name in ("locks", "failures", "running"):
            (path / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def mine(self, key: str, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether this process holds ``key`` inside the block; a process that dies lets go.

        Args:
            wait: until the process that holds it is done.
        """
        lock = FileLock(self.path / "locks" / f"{_short(key)}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        running = self._running(os.getpid())
        try:
            atomic_write_text(running, json.dumps({"key": key, "task": name}))
            yield True
        finally:
            running.unlink(missing_ok=True)
            lock.release()

    def fail(self, key: str, failure: Failure) -> None:
        """Tells all processes, and the user, that a task failed."""
        atomic_write_text(self._failure(key), json.dumps(asdict(failure), indent=1))

    def failure(self, key: str) -> Failure | None:
        """Why the task of that key failed since the start."""
        file = self._failure(key)
        if not file.exists() or file.stat().st_mtime < self.since:
            return None
        return Failure(**json.loads(file.read_text()))

    def bury(self, pid: int, code: int) -> bool:
        """A worker died: what it held failed. False where it held nothing; what one of that number held when an earlier
        start was killed does not count."""
        running = self._running(pid)
        if not running.exists() or running.stat().st_mtime < self.since:
            return False
        held = json.loads(running.read_text())
        self.fail(held["key"], Failure(held["task"], f"its process ended with code {code}"))
        running.unlink()
        return True

    def _failure(self, key: str) -> Path:
        return self.path / "failures" / f"{_short(key)}.json"

    def _running(self, pid: int) -> Path:
        return self.path / "running" / f"{os.uname().nodename}-{pid}.json"


def work(tasks: Sequence[Task], room: Room, go_on: Callable[[], bool] = lambda: True) -> None:
    """Runs every task that nobody else runs, until all are done or have failed.

    Args:
        tasks: in the order they are preferred.
        go_on: asked before each task; false ends the work.
    """
    left = list(tasks)
    while left and go_on():
        before = len(left)
        for task in list(left):
            if _settled(task, room):
                left.remove(task)
            elif all(need.done() for need in task.needs) and _taken(task, room):
                left.remove(task)
                break  # what was waiting for this one may now come first
        if len(left) == before:
            time.sleep(PAUSE_S)


def unsettled(tasks: Sequence[Task], room: Room) -> int:
    """How many are neither done nor kept from it by a failure."""
    return sum(not _settled(task, room) for task in tasks)


def failures(tasks: Sequence[Task], room: Room) -> dict[str, tuple[Failure, list[str]]]:
    """What failed, by key, with the names of the tasks that are not done for it."""
    found: dict[str, tuple[Failure, list[str]]] = {}
    for task in tasks:
        broken = _broken(task, room)
        if broken is not None:
            found.setdefault(broken[0], (broken[1], []))[1].append(task.name)
    return found


def _settled(task: Task, room: Room) -> bool:
    if _broken(task, room) is not None:
        return True
    return all(need.done() for need in task.needs) and task.done()


def _broken(task: Task, room: Room) -> tuple[str, Failure] | None:
    """The failure that keeps a task from being done: its own, or that of a need."""
    for need in task.needs:
        broken = _broken(need, room)
        if broken is not None:
            return broken
    if not all(need.done() for need in task.needs):
        return None
    failure = room.failure(task.key)
    return None if failure is None or task.done() else (task.key, failure)


def _taken(task: Task, room: Room) -> bool:
    """Runs the task unless somebody else does; whether it is settled now."""
    key = task.key
    with room.mine(key, task.name) as mine:
        if not mine:
            return False
        if task.done() or room.failure(key):
            return True
        try:
            task.run()
        except Exception as error:
            told = str(error) if isinstance(error, OstlightError) else f"{type(error).__name__}: {error}"
            room.fail(key, Failure(task.name, told, traceback.format_exc()))
            log.error(f"FAILED {task.name}: {told}")
    return True


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]
