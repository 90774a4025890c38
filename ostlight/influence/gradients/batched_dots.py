"""Small per-sample gradients wait, and meet their targets together at the end of a pass.

An adapter's or a norm's few thousand entries are multiplied faster than the threads for it are woken: one by one, the
small products were a seventh of a LoRA scoring pass on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 1 << 15
"""Most entries of a parameter whose gradients wait: an adapter of rank 8 on a width of 4,096."""

THIN = 32
"""Most rows or columns of a matrix whose gradients wait. A square one of that size is worth a product of its own: to
copy its targets costs more than to wake the threads."""

WAITING_ENTRIES = 1 << 22
"""Most entries of gradients, and of targets, that wait."""

Done = Callable[[str, Tensor, Tensor], None]
"""``done(name, dots [N, M], squared_norms [N])``"""


class _Part(NamedTuple):
    name: str
    gradients: Tensor
    target: Tensor


class Waiting:
    """Inner products and squared norms of formed per-sample gradients, of many parameters at once.

    Args:
        apart: each parameter's results by themselves; else those of all that waited together come as one, under the
            first one's name, unless one of them is no finite number.
        done: told the results, the last of them by ``finish``.
    """

    def __init__(self, apart: bool, done: Done) -> None:
        self._apart, self._done = apart, done
        self._parts: list[_Part] = []
        self._entries = 0

    def add(self, name: str, gradients: Tensor, target: Tensor) -> None:
        """``gradients [N, *shape]`` in fp32 or fp64, ``target [M, *shape]`` in any float dtype."""
        entries = max(len(gradients), len(target)) * gradients[0].numel()
        if self._parts and (self._entries + entries > WAITING_ENTRIES or self._differs(gradients)):
            self.finish()
        self._parts.append(_Part(name, gradients, target))
        self._entries += entries

    def finish(self) -> None:
        """Multiplies what waits."""
        parts, self._parts, self._entries = self._parts, [], 0
        if not parts:
            return
        if not self._apart:
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
    targets = torch.cat([part.target.flatten(1).to(gradients.dtype) for part in parts], 1)
    # [M, N]: several times faster than [N, M] in the BLAS at hand.
    return (targets @ gradients.T).T, torch.linalg.vector_norm(gradients, dim=1).square()
