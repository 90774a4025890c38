"""The samples of each optimiser step, and the steps as a dataset."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler, get_worker_info

from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, stop_if_useless
from ostlight.models.batch import Batch, Collator, TrainingStep, by_token_budget
from ostlight.models.encoding.encoder import Encoded, Encoder, text_alone
from ostlight.models.read_ahead import loader, read_ahead, worker_count
from ostlight.progress import phase
from ostlight.training.order import pass_order

CACHE_BYTES = 2**30
"""Memory for encoded samples; those beyond it are encoded each time they are used."""

CHUNK = 64
"""Samples that this process reads at a time where all are read."""


def plan_steps(samples: int, training: Training, seed: int) -> list[np.ndarray]:
    """Returns the indices of the samples of each optimiser step: epoch after epoch, none repeated within one.

    Args:
        samples: number of training samples; index 0 is the one with the highest utility.
        training: ``steps``, or ``epochs``; neither is one epoch. ``order`` is that of each epoch.
        seed: of the shuffles.
    """
    epochs = 1.0 if training.epochs is None else training.epochs
    steps = training.steps if training.steps is not None else math.ceil(samples * epochs / training.batch_size)
    wanted = steps * training.batch_size if training.steps is not None else max(1, round(samples * epochs))
    share = samples / wanted
    passes = [
        pass_order(training.order, samples, (seed * 1_000_003 + epoch) % 2**63, epoch * share, share)
        for epoch in range(math.ceil(wanted / samples))
    ]
    order = np.concatenate(passes)[:wanted]
    return [order[i : i + training.batch_size] for i in range(0, wanted, training.batch_size)]


class EncodedPool:
    """Some samples of a pool, encoded for one model and cached.

    A record that cannot be encoded is added to ``rejections`` and left out; one whose answer was cut, to ``cut``.

    Args:
        positions: of the samples; an index counts into these.
        encoder: of the model to train.
    """

    def __init__(self, pool: Pool, positions: Sequence[int] | np.ndarray, encoder: Encoder) -> None:
        self.pool, self.positions, self.encoder = pool, np.asarray(positions), encoder
        self.rejections: dict[int, BadRecord] = {}
        self.cut: set[int] = set()
        self._cache: dict[int, tuple[Sample, Encoded]] = {}
        self._free_bytes = [CACHE_BYTES]  # a list, so that ``select`` shares it

    def __len__(self) -> int:
        return len(self.positions)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is not forked makes do without the cache.
        return self.__dict__ | {"_cache": {}}

    def select(self, positions: Sequence[int] | np.ndarray) -> EncodedPool:
        """Returns other records of the same pool, with the same cache."""
        other = copy.copy(self)
        other._cache, other.positions = self._cache, np.asarray(positions)
        return other

    def usable(self, stage: str, collator: Collator | None = None, workers: int = 0) -> EncodedPool:
        """Returns the records that can be used, in the same order; reads and encodes all of them.

        Args:
            stage: for messages.
            collator: of the model; by it worker processes send what they encoded.
            workers: processes that read; 0 reads in this one.

        Raises:
            DataError: the model can use none of the first records.
        """
        rejected, used = list[BadRecord](), 0
        with phase(f"{stage}: reading and encoding", len(self), "samples") as read:
            for positions in self._read_all(np.sort(self.positions).tolist(), collator, workers):
                rejected += [self.rejections[p] for p in positions if p in self.rejections]
                used += sum(p not in self.rejections for p in positions)
                stop_if_useless(stage, rejected, used)
                read.advance(len(positions))
        return self.select([p for p in self.positions.tolist() if p not in self.rejections])

    def _read_all(self, positions: list[int], collator: Collator | None, workers: int) -> Iterator[list[int]]:
        """Reads and encodes records, and yields their positions, a few at a time."""
        if collator is None or workers == 0:
            for start in range(0, len(positions), CHUNK):
                self._read(positions[start : start + CHUNK])
                yield positions[start : start + CHUNK]
            return
        known = [p for p in positions if self.is_known(p)]
        yield known
        fresh = sorted(set(positions) - set(known))
        for chunk in read_ahead(self.pool, fresh, self.encoder, collator, workers):
            self.rejections.update(chunk.rejections)
            self.keep(chunk.batch)
            yield sorted({*chunk.rejections, *(sample.position for sample in chunk.batch.samples)})

    @property
    def bytes_per_sample(self) -> float:
        """Mean of what is cached."""
        sizes = [encoded.nbytes for _, encoded in self._cache.values()]
        return sum(sizes) / max(1, len(sizes))

    def is_known(self, position: int) -> bool:
        """Whether a record need not be read again: it is cached, or cannot be used."""
        return position in self._cache or position in self.rejections

    def keep(self, batch: Batch) -> None:
        """Caches the samples of a batch that another process has made, and notes whose answer was cut."""
        for sample, encoded in zip(batch.samples, batch.encoded, strict=True):
            if encoded.answer_cut:
                self.cut.add(sample.position)
            if sample.position not in self._cache and encoded.nbytes <= self._free_bytes[0]:
                inputs = {k: v.clone() for k, v in encoded.inputs.items()}  # or the whole batch would stay in memory
                self._add_to_cache(sample.position, (sample, replace(encoded, inputs=inputs)))

    def get(self, indices: Sequence[int] | np.ndarray) -> tuple[list[Sample], list[Encoded]]:
        """Returns the samples that can be encoded, in the order of ``indices``, and their encodings."""
        pairs = self._read([int(self.positions[i]) for i in indices])
        return [sample for sample, _ in pairs], [encoded for _, encoded in pairs]

    def _read(self, wanted: Sequence[int]) -> list[tuple[Sample, Encoded]]:
        fresh: dict[int, tuple[Sample, Encoded]] = {}
        for position, read in self.pool.read([p for p in wanted if p not in self._cache and p not in self.rejections]):
            try:
                if isinstance(read, BadRecord):
                    raise read
                fresh[position] = read, self.encoder.encode(read)
                if fresh[position][1].answer_cut:
                    self.cut.add(position)
            except BadRecord as error:
                self.rejections[position] = error
        pairs = [self._cache.get(p) or fresh.get(p) for p in wanted]
        for position, pair in fresh.items():
            self._add_to_cache(position, pair)
        return [pair for pair in pairs if pair is not None]

    def _add_to_cache(self, position: int, pair: tuple[Sample, Encoded]) -> None:
        size = sum(t.nbytes for t in pair[1].inputs.values())
        if size <= self._free_bytes[0] and get_worker_info() is None:  # the process that trains holds the one cache
            self._cache[position] = pair
            self._free_bytes[0] -= size


class StepDataset(Dataset[TrainingStep]):
    """Item ``k`` is the ``k``-th optimiser step of this rank.

    Args:
        plan: from ``plan_steps``, for all ranks.
        collator: of the model to train.
        tokens_per_batch: padded tokens in one forward pass.

    Attributes:
        rank, world_size: this rank takes every ``world_size``-th sample of a step.
    """

    def __init__(
        self, data: EncodedPool, plan: Sequence[np.ndarray], collator: Collator, tokens_per_batch: int
    ) -> None:
        self.data, self.plan, self.collator, self.tokens_per_batch = data, plan, collator, tokens_per_batch
        self.rank, self.world_size = 0, 1

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> TrainingStep:
        data, indices = self.data, self._indices(step)
        samples, encoded = data.get(indices)
        groups = by_token_budget([len(e) for e in encoded], self.tokens_per_batch)
        batches = [self.collator.batch([samples[i] for i in g], [encoded[i] for i in g]) for g in groups]
        rejections = {p: data.rejections[p] for p in data.positions[indices].tolist() if p in data.rejections}
        cut = frozenset(sample.position for sample, one in zip(samples, encoded, strict=True) if one.answer_cut)
        weight, filler = self.world_size / len(self.plan[step]), self._filler if self.world_size > 1 else None
        return TrainingStep(batches, weight, filler, rejections, cut)

    def is_known(self, step: int) -> bool:
        """Whether none of its records need be read."""
        return all(map(self.data.is_known, self.data.positions[self._indices(step)].tolist()))

    def _indices(self, step: int) -> np.ndarray:
        return self.plan[step][self.rank :: self.world_size]

    @cached_property
    def _filler(self) -> Batch | None:
        """Returns some of the first usable sample's answer as a batch of its own."""
        for k in range(len(self.data)):
            samples, encoded = self.data.get([k])
            if samples:
                return self.collator.batch(samples, [text_alone(encoded[0])])
        return None


class StepLoader:
    """The optimiser steps of a training in order, made ahead by worker processes.

    What workers find out comes back with the step: records that cannot be used, answers that were cut, and encoded
    samples, which this process caches. A step whose samples are all cached is made here.

    Args:
        steps: all of them.
        start: the first one to yield.
        compute: ``workers``.

    Attributes:
        workers: processes; 0 makes each step here when it is its turn.
    """

    def __init__(self, steps: StepDataset, start: int, compute: Compute) -> None:
        self.steps, self.start = steps, start
        rest = steps.plan[start:]
        samples = sum(map(len, rest)) // steps.world_size
        of_step = steps.data.bytes_per_sample * samples / max(1, len(rest))
        everything_known = all(steps.is_known(k) for k in range(start, len(steps)))
        self.workers = 0 if everything_known else worker_count(compute, samples, of_step)

    def __len__(self) -> int:
        """Of all steps: Lightning counts by it."""
        return len(self.steps)

    def __iter__(self) -> Iterator[TrainingStep]:
        requests = _Requests(self.steps, self.start)
        for made in loader(_Made(self.steps), self.workers, requests):
            yield self.steps[made] if isinstance(made, int) else self._received(made)

    def _received(self, step: TrainingStep) -> TrainingStep:
        self.steps.data.rejections.update(step.rejections)
        for micro in step.micro_batches:
            self.steps.data.keep(micro)
        return step


class _Requests(Sampler[tuple[int, bool]]):
    """Number of each step, and whether it is left to the process that trains; asked as workers get free."""

    def __init__(self, steps: StepDataset, start: int) -> None:
        self.steps, self.start = steps, start

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        return ((k, self.steps.is_known(k)) for k in range(self.start, len(self.steps)))


class _Made(Dataset[TrainingStep | int]):
    """A step, or its number where it is left to the process that trains."""

    def __init__(self, steps: StepDataset) -> None:
        self.steps = steps

    def __getitem__(self, request: tuple[int, bool]) -> TrainingStep | int:
        step, is_known = request
        return step if is_known else self.steps[step]
