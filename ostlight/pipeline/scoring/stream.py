"""The pool as a stream of batches, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ostlight.config.schema import Compute
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch, Collator, by_token_budget
from ostlight.models.encode import Encoded, Encoder
from ostlight.pipeline.images_read import ImageRead, images_of

SAMPLES_PER_BATCH = 512
"""Samples in a batch for selectors that use no model."""


@dataclass(frozen=True)
class Encoding:
    """How samples become batches for the proxy."""

    encoder: Encoder
    collator: Collator

    def batch(self, samples: list[Sample], encoded: list[Encoded]) -> Batch:
        """Returns the samples as one padded batch, on the CPU."""
        return self.collator.batch(samples, encoded)


class Rejection(NamedTuple):
    """A record that could not be used, and why."""

    position: int
    id: str | None
    error: BadRecord


class ShardBatch:
    """A batch and its shard. The last batch of a shard carries the shard's rejections and the image files it read.

    Not a dataclass: Lightning would look into one for tensors to move and fail on the frozen samples.
    """

    def __init__(
        self, shard: int, batch: Batch, is_last: bool, rejections: list[Rejection], images: list[ImageRead]
    ) -> None:
        self.shard, self.batch, self.is_last = shard, batch, is_last
        self.rejections, self.images = rejections, images

    def to(self, device: torch.device | str, **kwargs: Any) -> ShardBatch:
        """Returns it on another device; Lightning calls this."""
        return ShardBatch(self.shard, self.batch.to(device, **kwargs), self.is_last, self.rejections, self.images)


class ShardStream(IterableDataset[ShardBatch]):
    """Reads, encodes and batches the records of the given shards.

    Args:
        shards: numbers of the shards this rank scores; its worker processes divide them further.
        compute: ``shard_size`` and ``tokens_per_batch``.
        encoding: of the proxy; ``None`` for selectors that use none.
        retried: positions that alone are read, for shards of which not all records are.
    """

    def __init__(
        self,
        pool: Pool,
        shards: Sequence[int],
        compute: Compute,
        encoding: Encoding | None,
        retried: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.pool, self.shards, self.encoding = pool, list(shards), encoding
        self.retried = dict(retried or {})
        self.shard_size, self.tokens_per_batch = compute.shard_size, compute.tokens_per_batch

    @property
    def records(self) -> int:
        """Records in the shards, where the last, shorter shard counts as a full one."""
        counts = (len(self.retried.get(shard, range(self.shard_size))) for shard in self.shards)
        return min(len(self.pool), sum(counts))

    def __iter__(self) -> Iterator[ShardBatch]:
        worker = get_worker_info()
        shards = self.shards[worker.id :: worker.num_workers] if worker else self.shards
        for shard in shards:
            yield from self._shard_batches(shard)

    def _shard_batches(self, shard: int) -> Iterator[ShardBatch]:
        first = shard * self.shard_size
        whole = range(first, min(first + self.shard_size, len(self.pool)))
        samples, encoded, rejections, images = self.read(self.retried.get(shard, whole))
        groups = self._groups(samples, encoded)
        if not groups:
            yield ShardBatch(shard, Batch([]), True, rejections, images)
        for k, group in enumerate(groups):
            is_last = k + 1 == len(groups)
            batch = Batch([samples[i] for i in group])
            if self.encoding is not None:
                batch = self.encoding.batch(batch.samples, [encoded[i] for i in group])
            yield ShardBatch(shard, batch, is_last, rejections if is_last else [], images if is_last else [])

    def read(self, positions: Sequence[int]) -> tuple[list[Sample], list[Encoded], list[Rejection], list[ImageRead]]:
        """Returns the usable samples, their encodings (none without a proxy), the records that cannot be used, and the
        image files that were read."""
        samples: list[Sample] = []
        images: list[ImageRead] = []
        encoded: list[Encoded] = []
        rejections: list[Rejection] = []
        for position, read in self.pool.read(positions):
            if isinstance(read, BadRecord):
                rejections.append(Rejection(position, None, read))
                continue
            try:
                if self.encoding is not None:
                    encoded.append(self.encoding.encoder.encode(read))
                samples.append(read)
            except BadRecord as error:
                rejections.append(Rejection(position, read.id, error))
            images += images_of(self.pool, read, was_read=self.encoding is not None)
        return samples, encoded, rejections, images

    def _groups(self, samples: list[Sample], encoded: list[Encoded]) -> list[list[int]]:
        if self.encoding is None:
            indices = list(range(len(samples)))
            return [indices[i : i + SAMPLES_PER_BATCH] for i in range(0, len(indices), SAMPLES_PER_BATCH)]
        # Long batches first: running out of memory shows at once, not at the end of a shard.
        return by_token_budget([len(e) for e in encoded], self.tokens_per_batch)[::-1]
