"""How many processes a benchmark runs in, and how many threads each computes with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ostlight.config.schema import Config
from ostlight.errors import ConfigError
from ostlight.ranks import RANK_VARIABLES, is_first_rank, world_size

WORKER_BYTES = 2**30
"""Memory of a process beside its model."""
BYTES_PER_WEIGHT_BYTE = 4
"""Weights, gradients and two moments of the optimiser."""
MEMORY_INFO = Path("/proc/meminfo")


def worker_environments(configs: Sequence[Config]) -> list[dict[str, str]]:
    """Returns the environment variables of each worker process; empty where this process does all the work itself.

    One worker for each device, or where there is no accelerator for each core, as many as memory holds.

    Args:
        configs: of every variant.
    """
    config, wanted = configs[0], configs[0].benchmark and configs[0].benchmark.workers
    if wanted == 1:
        return []
    if _uses_gpus(config):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(k) for k in range(torch.cuda.device_count())]
        count = wanted or len(devices)
        environments = [{"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} for k in range(count)]
    else:
        count = wanted or min(_core_count(), _trainings_in_memory(configs))
        environments = [{"OMP_NUM_THREADS": str(threads_per_task(config))}] * count
    return environments if count > 1 else []


def threads_per_task(config: Config) -> int | None:
    """Returns how many threads a task computes with, in whichever process; ``None`` leaves what is set.

    More threads round sums differently, so the number must not change with free memory. ``None`` where one process has
    the whole machine, or a GPU computes.
    """
    wanted = config.benchmark and config.benchmark.workers
    if wanted == 1 or _uses_gpus(config):
        return None
    return max(1, _core_count() // wanted) if wanted else 1


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Computes with this many threads inside the block; ``None`` leaves what is set."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refuse_ranks(config: Config) -> None:
    """Refuses tasks on several devices: the ranks would run different tasks and still average their gradients.

    Raises:
        ConfigError: a task would run on several devices, or this process is one of several ranks.
    """
    counts = {
        "compute.devices": config.compute.devices,
        "compute.num_nodes": config.compute.num_nodes,
        "WORLD_SIZE": world_size(),
    }
    problems = [
        f"{name}={count}: each task of a benchmark runs on one device; set it to 1. benchmark.workers spreads the "
        "tasks over the devices of this machine"
        for name, count in counts.items()
        if count > 1
    ]
    if not is_first_rank():
        ranks = ", ".join(f"{name}={os.environ[name]}" for name in ("RANK", *RANK_VARIABLES) if name in os.environ)
        problems.append(f"{ranks}: this process is a rank of a distributed run; start `ostlight benchmark` once")
    if problems:
        raise ConfigError(problems)


def _uses_gpus(config: Config) -> bool:
    return config.compute.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _trainings_in_memory(configs: Sequence[Config]) -> int:
    """Returns how many trainings of the largest target fit into the memory that is available now."""
    available = re.search(r"MemAvailable:\s*(\d+) kB", MEMORY_INFO.read_text()) if MEMORY_INFO.exists() else None
    if available is None:
        return _core_count()
    weight_bytes = max(map(_weight_bytes, configs))
    return max(1, 1024 * int(available[1]) // (WORKER_BYTES + BYTES_PER_WEIGHT_BYTE * weight_bytes))


def _weight_bytes(config: Config) -> int:
    """Returns the size of the target's weights in its folder; 0 for a name on the hub."""
    return sum(f.stat().st_size for f in Path(str(config.target.path)).glob("*.safetensors"))
