"""Worker processes that read, decode and encode records ahead of the model, and how long it waits for them."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.utils.import_utils import is_torchvision_available

from ostlight.config.schema import Compute
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch, Collator
from ostlight.models.encoding.encoder import Encoder

log = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Processes of a rank unless ``compute.workers`` names more."""

SAMPLES_PER_WORKER = 200
"""Samples for which a process more is worth starting."""

CHUNK = 8
"""Records that a worker sends at a time."""

ITEM_BYTES = 2**28
"""What a worker sends at a time, where nothing better is known: a few large images."""

ITEMS_PER_WORKER = 2
"""That wait for the model, or are being made."""

SHARED_MEMORY = Path("/dev/shm")
"""Where what workers send lies, on Linux; a container may give it 64 MB."""

WAITS_LONG = 0.1
"""Share of the time from which waiting for data is worth a line."""

FIRST_LINE_AFTER_S = 60.0
"""Seconds after which a run that waits says so for the first time; the second time is at its end."""

LEAST_S = 10.0
"""Seconds of a stage that is too short for a line."""

T = TypeVar("T")


def worker_count(compute: Compute, samples: int, item_bytes: float = ITEM_BYTES) -> int:
    """Returns how many processes of this rank read and encode so many samples: ``compute.workers`` if it is a number.

    If not, one for each core that the ranks of this machine leave, or for a quarter of the cores where the model
    itself computes on them; at most ``MOST_WORKERS``, none for few samples, and as many as shared memory holds.

    Args:
        item_bytes: of what a process sends at a time.
    """
    if compute.workers is not None:
        return compute.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = compute.accelerator == "cpu" or (compute.accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu:  # a task of a benchmark is told by this how many are its own
        cores = min(cores, int(os.environ.get("OMP_NUM_THREADS") or cores))
    ranks = max(compute.devices, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    spare = cores // ranks // 4 if on_cpu else cores // ranks - 1
    fitting = _free_shared_memory() / ranks // (ITEMS_PER_WORKER * max(1.0, item_bytes))
    return int(max(0, min(spare, MOST_WORKERS, samples // SAMPLES_PER_WORKER, fitting)))


def _free_shared_memory() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf


def loader(dataset: Dataset[T], workers: int, sampler: Sampler[Any] | None = None) -> DataLoader[T]:
    """Returns the items of a data set, made by worker processes; 0 makes them in this one."""
    if workers:
        # Fast tokenizers warn when a process is forked that has used them, unless this says what to do.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ahead = ITEMS_PER_WORKER if workers else None
    return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, prefetch_factor=ahead)


@dataclass
class Chunk:
    """Some records that were read.

    Attributes:
        batch: the usable ones, in order.
        rejections: the others by position, with the reason.
    """

    batch: Batch
    rejections: dict[int, BadRecord] = field(default_factory=dict)


def read_ahead(
    pool: Pool, positions: Sequence[int], encoder: Encoder, collator: Collator, workers: int
) -> Iterator[Chunk]:
    """Yields the records at these positions, in their order, a few at a time, encoded.

    Args:
        workers: processes; 0 reads in this one.
    """
    chunks = _Chunks(pool, positions, encoder, collator)
    return iter(loader(chunks, workers))


class _Chunks(Dataset[Chunk]):
    def __init__(self, pool: Pool, positions: Sequence[int], encoder: Encoder, collator: Collator) -> None:
        self.pool, self.encoder, self.collator = pool, encoder, collator
        self.positions = [int(p) for p in positions]

    def __len__(self) -> int:
        return -(-len(self.positions) // CHUNK)

    def __getitem__(self, k: int) -> Chunk:
        samples, encoded, chunk = [], [], Chunk(Batch([]))
        for position, read in self.pool.read(self.positions[k * CHUNK : (k + 1) * CHUNK]):
            try:
                if isinstance(read, BadRecord):
                    raise read
                encoded.append(self.encoder.encode(read))
                samples.append(read)
            except BadRecord as error:
                chunk.rejections[position] = error
        if samples:
            chunk.batch = self.collator.batch(samples, encoded)
        return chunk


class Waited(Generic[T]):
    """Batches, and how long they were waited for; a long wait is worth a line in the log.

    The first batch does not count: nothing can be read before the start.

    Args:
        batches: iterated over once.
        stage: its name in the log; empty logs nothing.
        workers: processes that read them.

    Attributes:
        waited_s: seconds until the next batch was there.
        total_s: seconds since the first batch was there.
    """

    def __init__(self, batches: Iterable[T], stage: str, workers: int) -> None:
        self.batches, self.stage, self.workers = batches, stage, workers
        self.waited_s = self.total_s = 0.0
        self._lines = 0

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        batches = iter(self.batches)
        started: float | None = None
        try:
            while True:
                asked = time.monotonic()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                now = time.monotonic()
                if started is None:
                    started = now
                else:
                    self.waited_s, self.total_s = self.waited_s + now - asked, now - started
                if self._lines == 0 and self.total_s >= FIRST_LINE_AFTER_S:
                    self._log()
                yield batch
                self.total_s = time.monotonic() - started
        finally:
            if self.total_s >= LEAST_S:
                self._log()

    @property
    def share(self) -> float:
        """Of the time, from 0 to 1, that was spent waiting."""
        return self.waited_s / self.total_s if self.total_s else 0.0

    def _log(self) -> None:
        if not self.stage or self.share < WAITS_LONG:
            return
        self._lines += 1
        enough = math.ceil((self.workers or self.share) / max(0.05, 1 - self.share))
        readers = f"{self.workers} processes read" if self.workers else "the main process reads"
        log.info(
            f"{self.stage}: waits for data {self.share:.0%} of the time: {readers}; about {enough} would keep up "
            f"(compute.workers); smaller images{'' if is_torchvision_available() else ', or torchvision,'} help too"
        )
