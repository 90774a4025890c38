"""How many workers there are, and with how many threads; what becomes of one that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ostlight.benchmarking import workers
from ostlight.benchmarking.scheduler import Failure, Room
from ostlight.config import load_config
from ostlight.config.schema import Config
from ostlight.errors import BenchmarkError

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One of 8 cores, with so much free memory."""

    def has(free: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {free // 1024} kB\n")
        monkeypatch.setattr(workers, "MEMORY", tmp_path / "meminfo")

    return has


@pytest.fixture
def wanting(settings):
    """The configuration of a benchmark with so many workers."""

    def config(workers: int | None, **sections: Any) -> Config:
        section = {"selectors": [{"name": "random"}], "budgets": [{"count": 4}], "workers": workers}
        return load_config(settings(benchmark=section, **sections))

    return config


def test_free_memory_changes_how_many_workers_there_are_and_no_threads(machine, wanting):
    for free, workers_held in ((100 * GIB, 8), (3 * GIB, 2), (GIB, 0)):
        machine(free)
        assert workers.places([wanting(None)]) == [{"OMP_NUM_THREADS": "1"}] * workers_held
        assert workers.threads(wanting(None)) == 1
        assert workers.places([wanting(3)]) == [{"OMP_NUM_THREADS": "2"}] * 3
        assert workers.threads(wanting(3)) == 2
        assert workers.places([wanting(1)]) == []
        assert workers.threads(wanting(1)) is None, "one process computes with all there are"


def test_memory_must_hold_the_largest_target_of_all_variants(machine, wanting, tmp_path: Path):
    variants = []
    for name, size in (("small", GIB // 4), ("large", 2 * GIB), ("middle", GIB)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as sparse:
            sparse.truncate(size)
        variants.append(wanting(None, target={"path": str(tmp_path / name)}))
    machine(27 * GIB)
    assert [len(workers.places([v])) for v in variants] == [8, 3, 5]
    assert len(workers.places(variants)) == 3


def test_a_worker_for_each_gpu_or_as_many_as_wanted_in_turn(machine, wanting, monkeypatch: pytest.MonkeyPatch):
    machine(GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def seen_by_workers(wanted: int | None, **compute: str) -> list[str]:
        config = wanting(wanted, compute=compute)
        assert workers.threads(config) is None
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in workers.places([config])]

    assert seen_by_workers(None) == ["0", "1", "2"]
    assert seen_by_workers(2, accelerator="gpu") == ["0", "1"]
    assert seen_by_workers(5) == ["0", "1", "2", "0", "1"]
    assert seen_by_workers(1) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert seen_by_workers(None) == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert seen_by_workers(None) == [], "one device needs no second process"
    assert workers.places([wanting(2, compute={"accelerator": "cpu"})]) == [{"OMP_NUM_THREADS": "4"}] * 2


def test_another_takes_the_place_of_a_worker_that_dies_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = tmp_path / "done"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(done)!r}).exists(): time.sleep(0.01)"
    dies = (
        "import os, pathlib\nfrom ostlight.benchmarking.scheduler import Room\n"
        f"with Room(pathlib.Path({str(tmp_path / 'work')!r}), 0).mine('deadly', 'a task'): os.kill(os.getpid(), 9)"
    )
    ends = f"import pathlib; pathlib.Path({str(done)!r}).touch()"
    codes, places = iter([waits, dies, ends]), []

    def start(folder: Path, room: Room, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        places.append(environment["PLACE"])
        return subprocess.Popen([sys.executable, "-c", next(codes)])

    monkeypatch.setattr(workers, "_start", start)
    room = Room(tmp_path / "work", time.time())
    workers.share(tmp_path, room, [{"PLACE": "one"}, {"PLACE": "two"}], lambda: 0 if done.exists() else 2)
    assert places == ["one", "two", "two"]
    assert room.failure("deadly") == Failure("a task", "its process ended with code -9")


def test_a_worker_that_dies_without_a_task_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    def start(*_: object) -> subprocess.Popen[bytes]:
        code = "raise SystemExit(3)" if not started else "import time; time.sleep(60)"
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(BenchmarkError, match="a worker process ended with code 3 before it took a task"):
        workers.share(tmp_path, Room(tmp_path / "work", time.time()), [{}, {}], lambda: 2)
    assert len(started) == 2
    assert started[1].returncode is not None, "the others are stopped"
