"""Both kernels in plain PyTorch: the truth the Triton kernels are held to, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.checks import check_grad_dots
from ostlight_kernels.packing import Packing

BLOCK_BYTES = 32 * 2**20
"""Largest temporary: a block of gradients, or of new logits."""

SAMPLES_PER_BLOCK = 16


def _accumulating(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def grad_dots(
    a: Tensor,
    b: Tensor,
    targets: Tensor,
    segments: Tensor | Packing | None = None,
    num_samples: int | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    """See :func:`ostlight_kernels.grad_dots`. ``allow_tf32`` has no effect here."""
    check_grad_dots(a, b, targets, segments, num_samples)
    if isinstance(segments, Tensor):
        assert num_samples is not None
        segments = Packing.of(segments, num_samples)
    total = a.shape[0] if segments is None else segments.num_samples
    accumulating = torch.float64 if a.dtype == torch.float64 else torch.float32
    # [M, N] and the targets on the left: several times faster than [N, M] in the BLAS at hand.
    dots = torch.zeros(targets.shape[0], total, dtype=accumulating, device=a.device)
    for first in range(0, total, SAMPLES_PER_BLOCK):
        last = min(first + SAMPLES_PER_BLOCK, total)
        if segments is None:
            block_a, block_b = a[first:last], b[first:last]
        else:
            block_a, block_b = _unpacked(a, segments, first, last), _unpacked(b, segments, first, last)
        _add_block_dots(dots[:, first:last], _accumulating(block_a), _accumulating(block_b), targets)
    return dots.T.contiguous()


def _add_block_dots(dots: Tensor, a: Tensor, b: Tensor, targets: Tensor) -> None:
    """``dots [M, n] += <targets, b' a>``, forming the gradients of the block's samples a few rows at a time."""
    n, _, d_in = a.shape
    d_out = b.shape[2]
    rows = max(1, min(d_out, BLOCK_BYTES // max(1, n * d_in * a.element_size())))
    for row in range(0, d_out, rows):
        gradients = torch.bmm(b[:, :, row : row + rows].mT, a)
        dots += _accumulating(targets[:, row : row + rows].flatten(1)) @ gradients.flatten(1).T


def _unpacked(rows: Tensor, packing: Packing, first: int, last: int) -> Tensor:
    """``[last - first, longest, D]``: the tokens of these samples, zeros behind each sample's end."""
    longest = max(packing.lengths[first:last])
    starts = packing.starts[first : last + 1]
    place = starts[:-1, None] + torch.arange(longest, device=rows.device)
    inside = place < starts[1:, None]
    unpacked = rows.new_zeros(last - first, longest, rows.shape[2])
    unpacked[inside] = rows.reshape(-1, rows.shape[2])[packing.order[place[inside]]]
    return unpacked
