"""The pool as a stream of batches, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch, Collator, by_token_budget
from ostlight.models.encode import Encoded, Encoder

PLAIN_BATCH = 512
"""Samples in a batch for selectors that use no model."""


@dataclass(frozen=True)
class Rejection:
    """A record that could not be used, and why."""

    position: int
    id: str | None
    error: BadRecord


class ShardBatch:
    """A batch and where it belongs. The last one of a shard says so and brings the shard's rejections.

    No dataclass: Lightning would look into one for numbers to convert, and refuse the frozen samples it finds.
    """

    def __init__(self, shard: int, batch: Batch, last: bool, rejections: list[Rejection]) -> None:
        self.shard, self.batch, self.last, self.rejections = shard, batch, last, rejections

    def to(self, device: torch.device | str, **kwargs: Any) -> ShardBatch:
        """On another device; Lightning calls it."""
        return ShardBatch(self.shard, self.batch.to(device, **kwargs), self.last, self.rejections)


def shard_range(shard: int, shard_size: int, records: int) -> range:
    """Positions of one shard's records."""
    return range(shard * shard_size, min((shard + 1) * shard_size, records))


class ShardStream(IterableDataset[ShardBatch]):
    """Reads, encodes and groups the records of the given shards.

    Args:
        pool: what to read.
        shards: numbers of the shards this rank treats; worker processes divide them further.
        shard_size: records in a shard.
        encoder, collator: of the proxy; ``None`` for selectors that use none.
        tokens_per_batch: padded tokens in a batch.
    """

    def __init__(
        self,
        pool: Pool,
        shards: Sequence[int],
        shard_size: int,
        encoder: Encoder | None,
        collator: Collator | None,
        tokens_per_batch: int,
    ) -> None:
        self.pool, self.shards, self.shard_size = pool, list(shards), shard_size
        self.encoder, self.collator, self.tokens_per_batch = encoder, collator, tokens_per_batch

    def __iter__(self) -> Iterator[ShardBatch]:
        worker = get_worker_info()
        mine = self.shards[worker.id :: worker.num_workers] if worker else self.shards
        for shard in mine:
            yield from self._shard(shard)

    def _shard(self, shard: int) -> Iterator[ShardBatch]:
        samples: list[Sample] = []
        encoded: list[Encoded] = []
        rejections: list[Rejection] = []
        for position, read in self.pool.read(shard_range(shard, self.shard_size, len(self.pool))):
            if isinstance(read, BadRecord):
                rejections.append(Rejection(position, None, read))
                continue
            try:
                if self.encoder is not None:
                    encoded.append(self.encoder.encode(read))
                samples.append(read)
            except BadRecord as error:
                rejections.append(Rejection(position, read.id, error))
        groups = self._groups(samples, encoded)
        if not groups:
            yield ShardBatch(shard, Batch([]), True, rejections)
        for k, group in enumerate(groups):
            last = k + 1 == len(groups)
            chosen = [samples[i] for i in group]
            collate = self.collator.batch if self.collator else lambda samples, _: Batch(samples)
            batch = collate(chosen, [encoded[i] for i in group] if encoded else [])
            yield ShardBatch(shard, batch, last, rejections if last else [])

    def _groups(self, samples: list[Sample], encoded: list[Encoded]) -> list[list[int]]:
        if self.encoder is None:
            indices = list(range(len(samples)))
            return [indices[i : i + PLAIN_BATCH] for i in range(0, len(indices), PLAIN_BATCH)]
        # Long batches first: running out of memory shows at once, not at the end of a shard.
        return by_token_budget([len(e) for e in encoded], self.tokens_per_batch)[::-1]
