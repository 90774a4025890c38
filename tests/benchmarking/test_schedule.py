"""Tasks run in the order of their needs; a failure stops only what needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ostlight.benchmarking.schedule import Failure, Schedule, Task, run_here
from ostlight.errors import DataError


class WriteTask:
    """Appends its name to ``log`` and makes its file."""

    def __init__(
        self,
        folder: Path,
        name: str,
        needs: Sequence[Task] = (),
        action: Callable[[], None] = lambda: None,
        key: str | None = None,
    ) -> None:
        self.folder, self.name, self.needs, self.action, self.key = folder, name, needs, action, key or name
        self.kind = name.rstrip("0123456789")

    def is_done(self) -> bool:
        return (self.folder / self.key).exists()

    def run(self) -> None:
        self.action()
        with (self.folder / "log").open("a") as file:
            file.write(f"{self.name}\n")
        (self.folder / self.key).touch()


def fail() -> None:
    raise DataError("no such thing")


def names_run(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_a_task_is_offered_once_its_needs_are_done(tmp_path: Path):
    proxy = WriteTask(tmp_path, "proxy")
    scores = WriteTask(tmp_path, "scores", [proxy])
    other = WriteTask(tmp_path, "other")
    schedule = Schedule([proxy, scores, other])
    assert schedule.next_task() is proxy
    assert schedule.next_task() is other, "the scores need the proxy, which is still running"
    assert schedule.next_task() is None
    proxy.run()
    schedule.finish(proxy, None)
    assert schedule.next_task() is scores


def test_finished_tasks_are_not_run_again(tmp_path: Path):
    first = WriteTask(tmp_path, "first")
    first.run()
    run_here(Schedule([first, WriteTask(tmp_path, "second", [first])]))
    assert names_run(tmp_path) == ["first", "second"]


def test_two_tasks_of_one_key_run_once_and_never_together(tmp_path: Path):
    one, same = (WriteTask(tmp_path, name, key="shared") for name in ("one", "same"))
    needs_same = WriteTask(tmp_path, "needs_same", [same])
    schedule = Schedule([one, same, needs_same])
    assert schedule.next_task() is one
    assert schedule.next_task() is None
    one.run()
    schedule.finish(one, None)
    assert schedule.next_task() is needs_same


def test_a_failure_stops_only_what_needs_it(tmp_path: Path, logged):
    bad = WriteTask(tmp_path, "bad", action=fail)
    blocked = WriteTask(tmp_path, "blocked", [bad])
    schedule = Schedule([bad, blocked, WriteTask(tmp_path, "also_blocked", [blocked]), WriteTask(tmp_path, "good")])
    run_here(schedule)
    assert schedule.failures == [Failure("bad", "no such thing", ["blocked", "also_blocked"])]
    assert names_run(tmp_path) == ["good"]
    assert logged().splitlines() == ["failed: bad: no such thing"]


def test_an_unexpected_error_is_logged_with_its_traceback(tmp_path: Path, caplog):
    def divide() -> None:
        _ = 1 / 0

    schedule = Schedule([WriteTask(tmp_path, "bad", action=divide)])
    with caplog.at_level(logging.ERROR, logger="ostlight"):
        run_here(schedule)
    assert schedule.failures[0].error == "ZeroDivisionError: division by zero"
    assert caplog.records[0].exc_info


def test_a_failed_task_runs_again_at_the_next_start(tmp_path: Path):
    run_here(Schedule([WriteTask(tmp_path, "task", action=fail)]))
    again = Schedule([WriteTask(tmp_path, "task")])
    run_here(again)
    assert (again.failures, names_run(tmp_path)) == ([], ["task"])


def test_what_is_left_is_estimated_once_a_task_of_every_kind_was_measured(tmp_path: Path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ostlight.benchmarking.schedule.time.monotonic", lambda: now[0])
    scores = WriteTask(tmp_path, "scores0")
    schedule = Schedule([scores, *(WriteTask(tmp_path, f"training{k}") for k in range(4))])

    def end_after(seconds: float, task: Task) -> None:
        now[0] += seconds
        task.run()
        schedule.finish(task, None)

    first, second = schedule.next_task(), schedule.next_task()
    assert first is scores
    end_after(2.0, first)
    assert schedule.seconds_left(now[0]) is None, "no training was measured, and the scores say nothing of them"
    third = schedule.next_task()
    end_after(58.0, second)
    assert schedule.seconds_left(now[0]) == (2 + 2 * 60) / 2, "two at once: 2 s of the third, and two trainings"
    end_after(2.0, third)
    assert schedule.seconds_left(now[0]) == 2 * 60 / 2
    for _ in range(2):
        end_after(60.0, schedule.next_task())
    assert schedule.seconds_left(now[0]) == 0.0
