"""How many worker processes there are, and with how many threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ostlight.benchmarking import resources
from ostlight.config import load_config
from ostlight.config.schema import Config

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sets up a machine with 8 cores and this many bytes of free memory."""

    def with_memory(free: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {free // 1024} kB\n")
        monkeypatch.setattr(resources, "MEMORY_INFO", tmp_path / "meminfo")

    return with_memory


@pytest.fixture
def config_with(settings):
    """The configuration of a benchmark with this many workers."""

    def config(workers: int | None, **sections: Any) -> Config:
        section = {"selectors": [{"name": "random"}], "budgets": [{"count": 4}], "workers": workers}
        return load_config(settings(benchmark=section, **sections))

    return config


def test_free_memory_changes_the_number_of_workers_and_not_of_threads(machine, config_with):
    for free, workers_that_fit in ((100 * GIB, 8), (3 * GIB, 2), (GIB, 0)):
        machine(free)
        one_thread, two_threads = ({"OMP_NUM_THREADS": count} for count in "12")
        assert resources.worker_environments([config_with(None)]) == [one_thread] * workers_that_fit
        assert resources.threads_per_task(config_with(None)) == 1
        assert resources.worker_environments([config_with(3)]) == [two_threads] * 3
        assert resources.threads_per_task(config_with(3)) == 2
        assert resources.worker_environments([config_with(1)]) == []
        assert resources.threads_per_task(config_with(1)) is None, "one process uses all threads"


def test_memory_must_hold_the_largest_target_of_all_variants(machine, config_with, tmp_path: Path):
    variants = []
    for name, size in (("small", GIB // 4), ("large", 2 * GIB), ("middle", GIB)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as sparse:
            sparse.truncate(size)
        variants.append(config_with(None, target={"path": str(tmp_path / name)}))
    machine(27 * GIB)
    assert [len(resources.worker_environments([variant])) for variant in variants] == [8, 3, 5]
    assert len(resources.worker_environments(variants)) == 3


def test_gpus_are_assigned_to_workers_in_turn(machine, config_with, monkeypatch: pytest.MonkeyPatch):
    machine(GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def visible_devices(workers: int | None, **compute: str) -> list[str]:
        config = config_with(workers, compute=compute)
        assert resources.threads_per_task(config) is None
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in resources.worker_environments([config])]

    assert visible_devices(None) == ["0", "1", "2"]
    assert visible_devices(2, accelerator="gpu") == ["0", "1"]
    assert visible_devices(5) == ["0", "1", "2", "0", "1"]
    assert visible_devices(1) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_devices(None) == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert visible_devices(None) == [], "one device needs no second process"
    on_cpu = config_with(2, compute={"accelerator": "cpu"})
    assert resources.worker_environments([on_cpu]) == [{"OMP_NUM_THREADS": "4"}] * 2
