"""A Ray cluster that work is spread over: one that the user has, or one started on this machine.

Ray is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

from ostlight.config.schema import Compute
from ostlight.errors import ClusterError, ConfigError
from ostlight.logs import ROOT
from ostlight.models.read_ahead import MOST_WORKERS
from ostlight.ranks import CLUSTER_PROCESS, RANK_VARIABLES, is_first_rank, world_size
from ostlight.selection import registry
from ostlight.selection.selector import Selector

log = logging.getLogger(__name__)

HERE = "local"
"""The address of a cluster that is started on this machine, and ends with this process."""

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a cluster that is started here. What processes hand each other is small: scores and vectors go through files."""


@contextmanager
def connected(compute: Compute) -> Iterator[None]:
    """Inside, this process is connected to the cluster at ``compute.address``.

    Where that is not set, to the one that ``RAY_ADDRESS`` names, as it does in a job of ``ray job submit``, or else to
    one that is started on this machine. Where the calling program is connected already, that connection is used, and
    stays.

    Raises:
        ConfigError: Ray is not installed, no cluster answers at the address, or this process is one of several ranks.
    """
    ranks = world_size()
    if ranks > 1 or not is_first_rank():
        raise ConfigError(
            [f"compute.engine=ray: this process is a rank (WORLD_SIZE={ranks}); one process drives the cluster"]
        )
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(["compute.engine=ray needs a package: pip install 'ostlight[ray]'"]) from error
    if ray.is_initialized():
        yield
        return
    address = compute.address or os.environ.get("RAY_ADDRESS") or HERE
    options: dict[str, Any] = {}
    if address == HERE:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with _signals_unchanged():
        try:
            ray.init(address, logging_level=logging.WARNING, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError([f"compute.address: no Ray cluster answers at {address}: {reason}"]) from error
    try:
        log.info(f"ray: {describe_cluster()}" + (f", at {address}" if address != HERE else ", started here"))
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_unchanged() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM, which would end this process with another status."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def describe_cluster() -> str:
    """Returns the number of nodes and what they have, as text."""
    import ray

    nodes, have = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
    parts = [f"{have[name]:g} {name}s" for name in ("GPU", "CPU") if have.get(name)]
    return ", ".join([f"{nodes} node{'s' * (nodes != 1)}", *parts])


@dataclass(frozen=True)
class Place:
    """What one process of the cluster gets.

    Attributes:
        gpus: 1 or 0.
        cpus: cores: one, and one for each process that reads ahead.
    """

    gpus: int
    cpus: int

    @classmethod
    def of(cls, compute: Compute) -> Place:
        """Returns a GPU where the settings ask for one, or leave it open and the cluster has some; else a core."""
        import ray

        have = ray.cluster_resources()
        wants_gpu = compute.accelerator in ("gpu", "cuda")
        gpus = int(wants_gpu or (compute.accelerator == "auto" and have.get("GPU", 0) >= 1))
        workers = compute.workers
        if workers is None:  # the cores that there are for each GPU; on cores all compute
            spare = int(have.get("CPU", 0) // have["GPU"]) - 1 if gpus and have.get("GPU") else 0
            workers = max(0, min(spare, MOST_WORKERS))
        return cls(gpus, 1 + workers)

    @property
    def workers(self) -> int:
        """Processes that read ahead."""
        return self.cpus - 1

    @property
    def options(self) -> dict[str, Any]:
        """For ``ray.remote``."""
        return {"num_gpus": self.gpus, "num_cpus": self.cpus}

    def count(self) -> int:
        """Returns how many of these the cluster has by now, whether they are free or not."""
        import ray

        have = ray.cluster_resources()
        by_cpus = int(have.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(have.get("GPU", 0))) if self.gpus else by_cpus

    def compute(self, compute: Compute) -> Compute:
        """Returns the settings of a process in this place, which works on its one device alone."""
        return dataclasses.replace(
            compute,
            engine="local",
            address=None,
            accelerator=compute.accelerator if self.gpus else "cpu",
            devices=1,
            num_nodes=1,
            strategy="auto",
            workers=self.workers,
            progress=False,
        )

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        return f"1 GPU and {cpus}" if self.gpus else cpus


@dataclass(frozen=True)
class Driver:
    """What the processes of the cluster take over from the one that drives them.

    Attributes:
        folder: the working directory: the same relative paths must name the same files.
        level: of logging.
        selectors: those that the driving program has registered, by name.
    """

    folder: Path
    level: int
    selectors: Mapping[str, type[Selector]]

    @classmethod
    def here(cls) -> Driver:
        return cls(Path.cwd(), logging.getLogger(ROOT).getEffectiveLevel(), registry.registered())

    def enter(self, number: int = 0) -> None:
        """Makes the calling process one of the driver's. On CPUs it computes with one thread, as the workers of a
        benchmark do, whatever its node has: more threads round sums differently.

        Args:
            number: among those that work on the same; the first writes the files that they share.

        Raises:
            ClusterError: this node has no such working directory.
        """
        import torch

        for name in [n for n in os.environ if n.startswith("SLURM_") or n in ("RANK", *RANK_VARIABLES)]:
            del os.environ[name]  # of the job that has started the node: its processes are no ranks
        os.environ[CLUSTER_PROCESS] = str(number)
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ClusterError(
                f"node {socket.gethostname()} cannot enter {self.folder} ({error.strerror}); data and run folder must "
                "lie on storage that every node of the cluster mounts at the same path"
            ) from error
        logging.getLogger(ROOT).setLevel(self.level)
        for name, cls in self.selectors.items():
            registry.register(name)(cls)
        if not torch.cuda.is_available():
            torch.set_num_threads(1)


class _Records(list[logging.LogRecord]):
    """The queue of a ``QueueHandler``."""

    def put_nowait(self, record: logging.LogRecord) -> None:
        self.append(record)


@contextmanager
def recorded() -> Iterator[list[logging.LogRecord]]:
    """Collects what is logged inside, for the driver to handle."""
    records = _Records()
    handler, logger = QueueHandler(records), logging.getLogger(ROOT)  # type: ignore[arg-type]
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def handle(records: list[logging.LogRecord], level: int = logging.NOTSET) -> None:
    """Hands another process's records, from this level up, to the loggers of this one."""
    for record in records:
        if record.levelno >= level:
            logging.getLogger(record.name).handle(record)
