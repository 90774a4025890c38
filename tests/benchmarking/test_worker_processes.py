"""Tasks in worker processes: each once; crashes, interruptions and log records of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from ostlight.benchmarking.schedule import Failure, Schedule
from ostlight.benchmarking.worker_processes import run_in_processes
from ostlight.errors import BenchmarkError

# Worker processes find tasks by import: they are defined in a module that the tests write.
MODULE = '''
import logging, os, threading, time
from pathlib import Path


class Act:
    kind = "act"

    def __init__(self, folder, name, action="", needs=()):
        self.folder, self.name, self.key, self.action, self.needs = Path(folder), name, name, action, needs

    def is_done(self):
        return (self.folder / self.name).exists()

    def run(self):
        (self.folder / f"{self.name}.pid").write_text(str(os.getpid()))
        with (self.folder / "log").open("a") as log:
            log.write(f"{self.name}\\n")
        if self.action == "exit":
            os._exit(3)
        if self.action == "exit later":
            threading.Timer(0.2, os._exit, (3,)).start()
        if self.action == "outlive":
            other = self.folder / "task1.pid"
            while not other.exists() or os.path.exists(f"/proc/{other.read_text()}"):
                time.sleep(0.05)
        if self.action == "fail":
            raise ValueError("no such thing")
        if self.action == "sleep":
            time.sleep(120)
        if self.action == "environment":
            variables = os.environ["PLACE"], os.environ["OMP_WAIT_POLICY"]
            logging.getLogger("ostlight.test").info("PLACE is %s, %s", *variables)
        (self.folder / self.name).touch()


def load(folder, *actions):
    """A task of each action; the last one needs the first."""
    tasks = [Act(folder, f"task{k}", action) for k, action in enumerate(actions)]
    if len(tasks) > 1:
        tasks[-1].needs = tasks[:1]
    return tasks


def broken(folder):
    raise OSError("no such pool")


def run(folder, *actions):
    from functools import partial
    from ostlight.benchmarking.schedule import Schedule
    from ostlight.benchmarking.worker_processes import run_in_processes

    tasks = load(folder, *actions)
    run_in_processes(Schedule(tasks), tasks, partial(load, folder, *actions), [{}, {}])
'''


@pytest.fixture
def tasks_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tasks_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import tasks_of_the_test

    yield tasks_of_the_test
    del sys.modules["tasks_of_the_test"]


def run(module, folder: Path, actions: Sequence[str], environments: Sequence[dict[str, str]] = ({}, {})) -> Schedule:
    tasks = module.load(folder, *actions)
    schedule = Schedule(tasks)
    run_in_processes(schedule, tasks, partial(module.load, folder, *actions), environments)
    return schedule


def names_run(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_each_task_runs_once_after_its_needs_outside_this_process(tasks_module, tmp_path: Path):
    schedule = run(tasks_module, tmp_path, ["", "", "", ""])
    assert schedule.failures == []
    order = names_run(tmp_path)
    assert sorted(order) == ["task0", "task1", "task2", "task3"]
    assert order.index("task0") < order.index("task3")
    assert str(os.getpid()) not in {file.read_text() for file in tmp_path.glob("*.pid")}


def test_what_is_done_starts_no_process(tasks_module, tmp_path: Path):
    for name in ("task0", "task1"):
        (tmp_path / name).touch()
    start = time.monotonic()
    run(tasks_module, tmp_path, ["exit", "exit"])
    assert time.monotonic() - start < 1
    assert not (tmp_path / "log").exists()


def test_a_crash_fails_its_task_and_the_rest_goes_on(tasks_module, tmp_path: Path):
    schedule = run(tasks_module, tmp_path, ["exit", "fail", "", "", ""], [{}])
    crash, failure = schedule.failures
    assert (crash.task, crash.blocked) == ("task0", ["task4"])
    assert "crashed" in crash.error
    assert failure == Failure("task1", "ValueError: no such thing")
    assert names_run(tmp_path) == ["task0", "task1", "task2", "task3"]


def test_a_process_that_dies_between_its_tasks_is_replaced(tasks_module, tmp_path: Path):
    schedule = run(tasks_module, tmp_path, ["outlive", "exit later", ""], [{}, {}])
    assert schedule.failures == []
    assert sorted(names_run(tmp_path)) == ["task0", "task1", "task2"]


def test_environment_is_set_and_records_reach_this_process(tasks_module, tmp_path: Path, monkeypatch, logged):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run(tasks_module, tmp_path, ["environment"], [{"PLACE": "here"}])
    assert "PLACE is here, PASSIVE" in logged()


def test_a_process_that_cannot_load_the_tasks_ends_the_benchmark(tasks_module, tmp_path: Path):
    tasks = tasks_module.load(tmp_path, "")
    with pytest.raises(BenchmarkError, match="no such pool"):
        run_in_processes(Schedule(tasks), tasks, partial(tasks_module.broken, tmp_path), [{}])
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(tasks_module, tmp_path: Path, number: signal.Signals):
    script = tmp_path / "script.py"
    # In the background of a shell interrupts are ignored, which child processes inherit.
    script.write_text(
        "import signal\nimport tasks_of_the_test as t\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"if __name__ == '__main__': t.run({str(tmp_path)!r}, 'sleep', 'sleep', '')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    pid_files = [tmp_path / f"task{k}.pid" for k in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in pid_files))
    parent.send_signal(number)
    try:
        assert parent.wait(60) != 0
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in pid_files))
    assert not (tmp_path / "task2").exists()
