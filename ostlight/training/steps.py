"""The samples of each optimiser step, and the steps as a dataset."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from ostlight.config.schema import Training
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import FIRST_RECORDS, BadRecord, stop_if_useless
from ostlight.models.batch import Batch, Collator, TrainingStep, by_token_budget
from ostlight.models.encode import Encoded, Encoder
from ostlight.training.order import pass_order

CACHE_BYTES = 2**30
"""Memory for encoded samples; those beyond it are encoded each time they are used."""

CHUNK = 64
"""Samples that are read at a time where all are."""


def plan_steps(samples: int, training: Training, seed: int) -> list[np.ndarray]:
    """Returns the indices of the samples of each optimiser step: epoch after epoch, none repeated within one.

    Args:
        samples: number of training samples; index 0 is the one with the highest utility.
        training: ``steps``, or ``epochs``; neither is one epoch. ``order`` is that of each epoch.
        seed: of the shuffles.
    """
    epochs = 1.0 if training.epochs is None else training.epochs
    steps = training.steps if training.steps is not None else math.ceil(samples * epochs / training.batch_size)
    wanted = steps * training.batch_size if training.steps is not None else round(samples * epochs)
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

    def select(self, positions: Sequence[int] | np.ndarray) -> EncodedPool:
        """Returns other records of the same pool, with the same cache."""
        other = copy.copy(self)
        other.positions = np.asarray(positions)
        return other

    def usable(self, stage: str) -> EncodedPool:
        """Returns the records that can be used, in the same order; reads and encodes all of them.

        Args:
            stage: for messages.

        Raises:
            DataError: the model can use none of the first records.
        """
        in_order = np.argsort(self.positions, kind="stable")
        for start in range(0, len(in_order), CHUNK):
            self.get(in_order[start : start + CHUNK])
            seen = self.positions[in_order[: start + CHUNK]].tolist()
            rejected = [self.rejections[p] for p in seen if p in self.rejections] if start < FIRST_RECORDS else []
            stop_if_useless(stage, rejected, len(seen) - len(rejected))
        return self.select([p for p in self.positions.tolist() if p not in self.rejections])

    def get(self, indices: Sequence[int] | np.ndarray) -> tuple[list[Sample], list[Encoded]]:
        """Returns the samples that can be encoded, in the order of ``indices``, and their encodings."""
        wanted = [int(self.positions[i]) for i in indices]
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
        usable = [pair for pair in pairs if pair is not None]
        return [sample for sample, _ in usable], [encoded for _, encoded in usable]

    def _add_to_cache(self, position: int, pair: tuple[Sample, Encoded]) -> None:
        size = sum(t.nbytes for t in pair[1].inputs.values())
        if size <= self._free_bytes[0]:
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
        tokens: of the samples taken so far.
    """

    def __init__(
        self, data: EncodedPool, plan: Sequence[np.ndarray], collator: Collator, tokens_per_batch: int
    ) -> None:
        self.data, self.plan, self.collator, self.tokens_per_batch = data, plan, collator, tokens_per_batch
        self.rank, self.world_size = 0, 1
        self.tokens = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> TrainingStep:
        samples, encoded = self.data.get(self.plan[step][self.rank :: self.world_size])
        self.tokens += sum(len(e) for e in encoded)
        groups = by_token_budget([len(e) for e in encoded], self.tokens_per_batch)
        batches = [self.collator.batch([samples[i] for i in g], [encoded[i] for i in g]) for g in groups]
        return TrainingStep(
            batches, self.world_size / len(self.plan[step]), self._filler if self.world_size > 1 else None
        )

    @cached_property
    def _filler(self) -> Batch | None:
        """Returns the first usable sample as a batch of its own."""
        for k in range(len(self.data)):
            samples, encoded = self.data.get([k])
            if samples:
                return self.collator.batch(samples, encoded)
        return None
