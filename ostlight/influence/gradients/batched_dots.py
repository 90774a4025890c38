"""Inner products of small per-sample gradients, of many parameters in one matrix product.

An adapter's or a norm's few thousand entries are multiplied faster than the threads for it are woken: one by one, the
small products were a seventh of a LoRA scoring pass on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 1 << 15
"""Most entries of a parameter whose gradients are batched: an adapter of rank 8 on a width of 4,096."""

THIN = 32
"""Most rows or columns of a matrix whose gradients are batched. A square one of that size is worth a product of its
own: to copy its vectors costs more than to wake the threads."""

BATCHED_ENTRIES = 1 << 22
"""Most entries of gradients, and of vectors, in one batch."""

Done = Callable[[str, Tensor, Tensor], None]
"""``done(name, dots [N, M], squared_norms [N])``"""


class _Part(NamedTuple):
    name: str
    gradients: Tensor
    vectors: Tensor


class BatchedDots:
    """Inner products and squared norms of formed per-sample gradients, of many parameters at once.

    Args:
        separate: each parameter's results by themselves; else those of a whole batch come as one, under the
            first one's name, unless one of them is no finite number.
        done: receives the results, the last of them by ``finish``.
    """

    def __init__(self, separate: bool, done: Done) -> None:
        self._separate, self._done = separate, done
        self._parts: list[_Part] = []
        self._entries = 0

    def add(self, name: str, gradients: Tensor, vectors: Tensor) -> None:
        """``gradients [N, *shape]`` in fp32 or fp64, ``vectors [M, *shape]`` in any float dtype."""
        entries = max(len(gradients), len(vectors)) * gradients[0].numel()
        if self._parts and (self._entries + entries > BATCHED_ENTRIES or self._differs(gradients)):
            self.finish()
        self._parts.append(_Part(name, gradients, vectors))
        self._entries += entries

    def finish(self) -> None:
        """Multiplies the batch."""
        parts, self._parts, self._entries = self._parts, [], 0
        if not parts:
            return
        if not self._separate:
            dots, squares = _products(parts)
            if dots.isfinite().all() and squares.isfinite().all():
                self._done(parts[0].name, dots, squares)
                return
        for part in parts:
            self._done(part.name, *_products([part]))

    def _differs(self, gradients: Tensor) -> bool:
        first = self._parts[0].gradients
        return (first.dtype, len(first)) != (gradients.dtype, len(gradients))


def _products(parts: list[_Part]) -> tuple[Tensor, Tensor]:
    """``[N, M]`` and ``[N]``, summed over the parts."""
    gradients = torch.cat([part.gradients.flatten(1) for part in parts], 1)
    vectors = torch.cat([part.vectors.flatten(1).to(gradients.dtype) for part in parts], 1)
    # [M, N]: several times faster than [N, M] in the BLAS at hand.
    return (vectors @ gradients.T).T, torch.linalg.vector_norm(gradients, dim=1).square()
