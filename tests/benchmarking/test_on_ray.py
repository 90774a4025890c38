"""Tasks on a Ray cluster of two nodes: each once, after its needs; nodes that are killed, processes that crash."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from ray_nodes import add_node, kill_second_node, two_nodes

import ostlight
from ostlight.benchmarking import on_ray
from ostlight.benchmarking.schedule import Schedule
from ostlight.pipeline.ray_cluster import Place

pytest.importorskip("ray", reason="needs pip install 'ostlight[ray]'")
pytestmark = pytest.mark.slow

MODULE = '''
import logging, os, time
from pathlib import Path
import ray


class Act:
    kind = "act"

    def __init__(self, folder, name, action="", needs=()):
        self.folder, self.name, self.action, self.needs = Path(folder), name, action, needs
        self.key = name

    def is_done(self):
        return (self.folder / self.name).exists()

    def run(self):
        head = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
        where = "first" if ray.get_runtime_context().get_node_id() in head else "second"
        with (self.folder / "log").open("a") as log:
            log.write(f"{self.name} {where}\\n")
        if self.action == "exit":
            os._exit(3)
        if self.action == "fail":
            raise ValueError("no such thing")
        while self.action == "wait" and not (self.folder / "go").exists():
            time.sleep(0.05)
        logging.getLogger("ostlight.test").info(f"{self.name} ran with {os.environ['OMP_WAIT_POLICY']}")
        if self.action != "lose":
            (self.folder / self.name).touch()


def load(folder, *actions):
    """A task of each action; the last one needs the first."""
    tasks = [Act(folder, f"task{k}", action) for k, action in enumerate(actions)]
    if len(tasks) > 1:
        tasks[-1].needs = tasks[:1]
    return tasks


def load_others(folder, *actions):
    tasks = load(folder, *actions)
    for task in tasks:
        task.key += " of other data"
    return tasks


def broken(folder, *actions):
    raise OSError("no such pool")
'''


@pytest.fixture(scope="module")
def tasks_module(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tasks_on_ray.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import tasks_on_ray

    yield tasks_on_ray
    del sys.modules["tasks_on_ray"]
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def cluster(tasks_module):
    with two_nodes() as cluster:
        yield cluster


def run(module, folder: Path, actions: list[str], load: str = "load") -> Schedule:
    tasks = module.load(folder, *actions)
    schedule = Schedule(tasks)
    on_ray.run_on_ray(schedule, tasks, partial(getattr(module, load), folder, *actions), Place(0, 1))
    return schedule


def runs(folder: Path) -> list[list[str]]:
    """Name and node of every start of a task, in order."""
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def wait_until(condition, timeout: float = 250) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_each_task_runs_once_after_its_needs_and_its_records_come_back(cluster, tasks_module, tmp_path: Path, logged):
    (tmp_path / "task1").touch()
    schedule = run(tasks_module, tmp_path, ["", "exit", "fail", ""])
    (failure,) = schedule.failures
    assert (failure.task, failure.error) == ("task2", "ValueError: no such thing")
    order = [name for name, _ in runs(tmp_path)]
    assert sorted(order) == ["task0", "task2", "task3"]
    assert order.index("task0") < order.index("task3")
    messages = logged()
    assert "task3 ran with PASSIVE" in messages
    assert "failed: task2" in messages


def test_a_process_that_dies_again_and_again_fails_its_task_alone(cluster, tasks_module, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(on_ray, "LOST_TIMES", 1)
    schedule = run(tasks_module, tmp_path, ["exit", "", ""])
    (failure,) = schedule.failures
    assert (failure.task, failure.blocked) == ("task0", ["task2"])
    assert "lost 2 times" in failure.error
    assert [name for name, _ in runs(tmp_path)].count("task0") == 2
    assert (tmp_path / "task1").exists()


def test_a_node_with_other_data_or_without_the_run_folder_fails_the_task(
    cluster, tasks_module, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(on_ray, "VISIBLE_S", 0.1)
    lost, other, broken = (
        run(tasks_module, tmp_path, [action], load).failures[0].error
        for action, load in (("lose", "load"), ("", "load_others"), ("", "broken"))
    )
    assert "must mount the run folder" in lost
    assert "of other data" in other
    assert "no such pool" in broken


def test_tables_are_those_of_one_process_though_a_node_is_killed(cluster, settings, tmp_path: Path):
    section = {"selectors": [{"name": "full"}, {"name": "loss"}], "budgets": [{"fraction": 0.25}], "seeds": [0, 1]}
    here = settings(name="here", benchmark=section | {"workers": 1})
    there = settings(name="there", benchmark=section, compute=settings()["compute"] | {"engine": "ray"})
    ostlight.benchmark(here)
    folders = [tmp_path / "runs" / name for name in ("here", "there")]

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(ostlight.benchmark, there)
        wait_until(lambda: list(folders[1].glob("trained/*.json")))
        kill_second_node(cluster)
        add_node(cluster)
        ended.result()
    for name in ("table.md", "table.csv", "table.jsonl"):
        assert (folders[0] / name).read_bytes().replace(b"here", b"there") == (folders[1] / name).read_bytes(), name


def test_tasks_of_a_killed_node_run_on_another_and_a_new_node_gets_tasks(cluster, tasks_module, tmp_path: Path):
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(run, tasks_module, tmp_path, ["wait", "wait", "", ""])
        try:
            wait_until(lambda: (tmp_path / "log").exists() and len(runs(tmp_path)) == 2)
            kill_second_node(cluster)
            add_node(cluster)
            wait_until(lambda: len(runs(tmp_path)) >= 3)
        finally:
            (tmp_path / "go").touch()  # whatever failed: the thread is waited for
        assert ended.result().failures == []
    started = runs(tmp_path)
    assert sorted(where for _, where in started[:2]) == ["first", "second"]
    (lost,) = (name for name, where in started[:2] if where == "second")
    assert started[2][1] == "second", "the first node is busy, the second was killed: the new one gets a task"
    names = [name for name, _ in started]
    assert {name: names.count(name) for name in names} == {"task0": 1, "task1": 1, "task2": 1, "task3": 1, lost: 2}
