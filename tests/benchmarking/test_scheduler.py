"""Tasks shared by lock files: done once, in the order of their needs, failures told and survived."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ostlight.benchmarking.scheduler import Failure, Room, Task, failures, unsettled, work
from ostlight.errors import DataError


class Write:
    """Appends a line to its file's log, then makes the file."""

    def __init__(self, folder: Path, name: str, needs: Sequence[Task] = (), before: Callable[[], None] = lambda: None):
        self.file, self.name, self.key, self.needs, self.before = folder / name, name, name, needs, before

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        self.before()
        with (self.file.parent / "log").open("a") as log:
            log.write(f"{self.name}\n")
        self.file.touch()


def fail() -> None:
    raise DataError("no such thing")


def test_needs_come_first_whatever_the_order(tmp_path: Path):
    score = Write(tmp_path, "score")
    planned = Write(tmp_path, "planned", [score])
    work([planned, score], Room(tmp_path / "work", time.time()))
    assert (tmp_path / "log").read_text().split() == ["score", "planned"]


def test_a_failure_is_told_and_holds_up_only_what_needs_it(tmp_path: Path, logged):
    bad = Write(tmp_path, "bad", before=fail)
    tasks = [bad, Write(tmp_path, "waits", [bad]), Write(tmp_path, "good")]
    room = Room(tmp_path / "work", time.time())
    work(tasks, room)
    assert logged().splitlines() == ["FAILED bad: no such thing"]
    assert (tmp_path / "log").read_text().split() == ["good"]
    ((failure, names),) = failures(tasks, room).values()
    assert (failure.task, failure.error, names) == ("bad", "no such thing", ["bad", "waits"])
    assert "DataError" in failure.trace
    assert unsettled(tasks, room) == 0


def test_a_new_start_tries_again(tmp_path: Path):
    work([Write(tmp_path, "it", before=fail)], Room(tmp_path / "work", time.time()))
    later = Room(tmp_path / "work", time.time() + 5)
    again = Write(tmp_path, "it")
    assert unsettled([again], later) == 1
    work([again], later)
    assert again.done()


def test_a_dead_workers_task_counts_as_failed(tmp_path: Path):
    room = Room(tmp_path / "work", time.time())
    process = multiprocessing.get_context("fork").Process(target=_die_at_work, args=(tmp_path, room))
    process.start()
    process.join()
    task = Write(tmp_path, "deadly")
    assert unsettled([task], room) == 1
    room.bury(process.pid or 0, -9)
    assert room.failure("deadly") == Failure("deadly", "its process ended with code -9")
    assert unsettled([task], room) == 0


def test_what_was_held_when_an_earlier_start_was_killed_is_not_laid_on_a_new_worker_of_that_number(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(
        target=_die_at_work, args=(tmp_path, Room(tmp_path / "work", time.time()))
    )
    process.start()
    process.join()
    later = Room(tmp_path / "work", time.time() + 5)
    assert not later.bury(process.pid or 0, 1)
    assert later.failure("deadly") is None


def _die_at_work(folder: Path, room: Room) -> None:
    import os

    work([Write(folder, "deadly", before=lambda: os._exit(9))], room)


def test_processes_share_and_none_does_a_thing_twice(tmp_path: Path):
    processes = [multiprocessing.get_context("fork").Process(target=_share, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == sorted(f"task{k}" for k in range(12))


def _share(folder: Path) -> None:
    first = Write(folder, "task0", before=lambda: time.sleep(0.2))
    rest = [Write(folder, f"task{k}", [first], before=lambda: time.sleep(0.01)) for k in range(1, 12)]
    work([first, *rest], Room(folder / "work", 0.0))
