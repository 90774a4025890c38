"""How many workers there are, and with how many threads; what becomes of one that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ostlight.config import load_config
from ostlight.config.schema import Config
from ostlight.errors import BenchmarkError
from ostlight.run.tasks import Room
from ostlight.stages import workers

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """One of 8 cores, with so much free memory."""

    def has(free: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": free, "SC_PAGE_SIZE": 1}.__getitem__)

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
