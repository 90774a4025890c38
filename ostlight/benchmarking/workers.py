"""Processes that share the tasks of a benchmark, and the one that each of them runs.

python -m ostlight.benchmarking.workers FOLDER SINCE     # what `ostlight benchmark` starts; FOLDER is the run's
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ostlight.benchmarking.scheduler import Room
from ostlight.config.load import load_config
from ostlight.config.schema import Config
from ostlight.errors import BenchmarkError, ConfigError
from ostlight.ranks import RANK_VARIABLES, is_first_rank

PAUSE_S = 0.2
WORKER_BYTES = 2**30
"""Memory of a process beside its model."""
BYTES_PER_WEIGHT_BYTE = 4
"""Weights, gradients and two moments."""
MEMORY = Path("/proc/meminfo")
"""Of the system; what its caches would give back counts as available."""


def places(configs: Sequence[Config]) -> list[dict[str, str]]:
    """The environment of each worker; none where this process does all the work itself.

    One worker for each device, or for each core where there is no accelerator, as many as memory holds.

    Args:
        configs: of every variant.
    """
    config = configs[0]
    assert config.benchmark is not None
    wanted = config.benchmark.workers
    if wanted == 1:
        return []
    if _on_gpus(config):
        told = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = told.split(",") if told else [str(k) for k in range(torch.cuda.device_count())]
        count = wanted or len(devices)
        found = [{"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} for k in range(count)]
    else:
        count = wanted or min(_cores(), _fitting(configs))
        found = [{"OMP_NUM_THREADS": str(threads(config))} for _ in range(count)]
    return found if len(found) > 1 else []


def threads(config: Config) -> int | None:
    """What a task computes with, in whichever process: sums of more threads are rounded otherwise.

    Therefore neither free memory nor the number of workers it holds has a say. ``None`` leaves what is set: one process
    has the whole machine, or a GPU computes.
    """
    assert config.benchmark is not None
    wanted = config.benchmark.workers
    if wanted == 1 or _on_gpus(config):
        return None
    return max(1, _cores() // wanted) if wanted else 1


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """This many threads inside the block; ``None`` leaves what is set."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_gpus(config: Config) -> bool:
    return config.compute.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_ranks(config: Config) -> None:
    """Ranks would take different tasks and yet average their gradients: tasks are shared by processes of one device.

    Raises:
        ConfigError: a task would run on several devices, or this process is one of several ranks.
    """
    ranks = {
        "compute.devices": config.compute.devices,
        "compute.num_nodes": config.compute.num_nodes,
        "WORLD_SIZE": int(os.environ.get("WORLD_SIZE", "1")),
    }
    problems = [
        f"{name}={count}: a benchmark's tasks run on one device each; set it to 1. benchmark.workers shares the tasks "
        "among this machine's devices, and `ostlight benchmark` started on further machines, on the same folder, "
        "shares them too"
        for name, count in ranks.items()
        if count > 1
    ]
    if not is_first_rank():
        set_here = ", ".join(f"{name}={os.environ[name]}" for name in ("RANK", *RANK_VARIABLES) if name in os.environ)
        problems.append(
            f"{set_here}: this process is a rank of others, and only the first writes what a task costs; start each "
            "`ostlight benchmark` as a job of its own"
        )
    if problems:
        raise ConfigError(problems)


def _fitting(configs: Sequence[Config]) -> int:
    """How many trainings of the largest target memory holds."""
    told = re.search(r"MemAvailable:\s*(\d+) kB", MEMORY.read_text()) if MEMORY.exists() else None
    if told is None:
        return _cores()
    weights = max(map(_weight_bytes, configs))
    return max(1, 1024 * int(told[1]) // (WORKER_BYTES + BYTES_PER_WEIGHT_BYTE * weights))


def _weight_bytes(config: Config) -> int:
    """Of the target as it lies in its folder; 0 for a hub name."""
    return sum(f.stat().st_size for f in Path(str(config.target.path)).glob("*.safetensors"))


def share(folder: Path, room: Room, environments: list[dict[str, str]], unfinished: Callable[[], int]) -> None:
    """Starts a worker in each environment and waits until nothing is left to do.

    A worker that dies fails the task it held, and another takes its place.

    Args:
        folder: the run's.
        room: where the workers meet.
        unfinished: how many tasks are still open.

    Raises:
        BenchmarkError: a worker died without a task, and so would the one in its place; the others are stopped.
    """
    running: list[tuple[subprocess.Popen[bytes], dict[str, str]]] = []
    try:
        running = [(_start(folder, room, e), e) for e in environments[: unfinished()]]
        while running:
            time.sleep(PAUSE_S)
            for worker, environment in list(running):
                code = worker.poll()
                if code is None:
                    continue
                running.remove((worker, environment))
                if code != 0 and not room.bury(worker.pid, code):
                    raise BenchmarkError(
                        f"a worker process ended with code {code} before it took a task; what it printed stands above. "
                        "benchmark.workers=1 does without workers"
                    )
                if code != 0 and unfinished():
                    running.append((_start(folder, room, environment), environment))
    finally:
        for worker, _ in running:
            worker.terminate()
        for worker, _ in running:
            worker.wait()


def _start(folder: Path, room: Room, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ostlight.benchmarking.workers", str(folder), repr(room.since)]
    return subprocess.Popen(command, env=os.environ | environment)


def main() -> None:
    """Works on the tasks of the benchmark in a folder until they are done, or until its parent is gone."""
    from ostlight.benchmarking.benchmark import work_on

    folder, since = Path(sys.argv[1]), float(sys.argv[2])
    parent = os.getppid()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    work_on(load_config(folder / "config.yaml"), since, go_on=lambda: os.getppid() == parent)


if __name__ == "__main__":
    main()
