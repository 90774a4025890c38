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
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.pipeline.images_read import ImageRead, images_of

SAMPLES_PER_BATCH = 512
"""Samples in a batch for selectors that use no model."""

WINDOW_BYTES = 2**28
"""Encoded inputs that a process collects to batch samples of similar length: a shard of text, or a dozen large
images."""


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


class Window:
    """Records of a shard that were read and not batched yet.

    Attributes:
        usable: samples with their encodings for the proxy, ``None`` without one.
        rejections: records that cannot be used.
        images: image files that were read.
        nbytes: of the encodings.
    """

    def __init__(self) -> None:
        self.usable: list[tuple[Sample, Encoded | None]] = []
        self.rejections: list[Rejection] = []
        self.images: list[ImageRead] = []
        self.nbytes = 0


class ShardBatch:
    """A batch and its shard, with records that cannot be used and image files that were read for this batch or others.

    Not a dataclass: Lightning would look into one for tensors to move and fail on the frozen samples.

    Args:
        is_last: whether the shard is complete with it.
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
        window = Window()
        for position, read in self.pool.read(self.retried.get(shard, whole)):
            self._add(position, read, window)
            is_full = window.nbytes >= WINDOW_BYTES if self.encoding else len(window.usable) == SAMPLES_PER_BATCH
            if is_full:
                rest = Window()
                yield from self._batches(shard, window, rest)
                window = rest
        yield from self._batches(shard, window, None)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Returns the usable ones of these records as one batch."""
        window = Window()
        for position, read in self.pool.read(positions):
            self._add(position, read, window)
        return self._batch(window.usable)

    def _add(self, position: int, read: Sample | BadRecord, window: Window) -> None:
        if isinstance(read, BadRecord):
            window.rejections.append(Rejection(position, None, read))
            return
        try:
            encoded = self.encoding.encoder.encode(read) if self.encoding is not None else None
            window.usable.append((read, encoded))
            window.nbytes += encoded.nbytes if encoded is not None else 0
        except BadRecord as error:
            window.rejections.append(Rejection(position, read.id, error))
        window.images += images_of(self.pool, read, was_read=self.encoding is not None)

    def _batches(self, shard: int, window: Window, rest: Window | None) -> Iterator[ShardBatch]:
        """Yields the samples of a window as batches; those in a batch leave the window.

        Args:
            rest: gets the longest samples, which seldom fill a batch alone, of a shard that goes on. ``None`` at the
                end of the shard.
        """
        # Long batches first: running out of memory shows at once, not at the end of a shard.
        groups = [[window.usable[i] for i in group] for group in self._groups(window)[::-1]]
        window.usable = []
        if rest is not None and len(groups) > 1 and (size := _nbytes(groups[0])) < WINDOW_BYTES // 2:
            rest.usable, rest.nbytes = groups.pop(0), size
        while groups or window.rejections or window.images or rest is None:
            batch = self._batch(groups.pop(0) if groups else [])
            is_last = rest is None and not groups
            yield ShardBatch(shard, batch, is_last, window.rejections, window.images)
            window.rejections, window.images = [], []
            if is_last:
                return

    def _batch(self, usable: Sequence[tuple[Sample, Encoded | None]]) -> Batch:
        samples, encoded = [sample for sample, _ in usable], [one for _, one in usable if one is not None]
        if self.encoding is None or not samples:
            return Batch(samples)
        return self.encoding.batch(samples, encoded)

    def _groups(self, window: Window) -> list[list[int]]:
        if self.encoding is None:
            return [list(range(len(window.usable)))] if window.usable else []
        lengths = [len(encoded) for _, encoded in window.usable if encoded is not None]
        return by_token_budget(lengths, self.tokens_per_batch)


def _nbytes(usable: Sequence[tuple[Sample, Encoded | None]]) -> int:
    return sum(encoded.nbytes for _, encoded in usable if encoded is not None)
