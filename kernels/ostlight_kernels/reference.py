"""`grad_dots` in plain PyTorch: what the Triton kernel is compared with, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.packing import Packing

GRADIENT_BYTES = 32 * 2**20
"""Largest block of gradients, and of the vectors they are multiplied with."""

SAMPLES_PER_BLOCK = 16

VECTORS_PER_BLOCK = 128
"""More vectors are taken in turns, where otherwise too few rows of the gradients would fit."""

FEW_COLUMNS = 32
"""Up to this many inputs (an adapter's rank) a CPU forms the transposed gradient several times faster."""


def accumulating(x: Tensor) -> Tensor:
    """fp32, or fp64 where it was."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def dots_and_squares(
    a: Tensor, b: Tensor, vectors: Tensor, packing: Packing | None = None, *, squares: bool = True
) -> tuple[Tensor, Tensor]:
    """``<b_n' a_n, vector_m>`` and ``||b_n' a_n||^2``; each sample's gradient is formed once for both.

    Args:
        a, b, vectors, packing: as :func:`ostlight_kernels.grad_dots` takes them, and has checked them.
        squares: take the squared norms; zeros otherwise.

    Returns:
        ``[N, M]`` and ``[N]``, fp32; fp64 for fp64 input.
    """
    if a.device.type == "cpu" and a.shape[2] <= FEW_COLUMNS < b.shape[2]:
        a, b, vectors = b, a, vectors.mT
    total = a.shape[0] if packing is None else packing.num_samples
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    # [M, N] and the vectors on the left: several times faster than [N, M] in the BLAS at hand.
    dots = torch.zeros(vectors.shape[0], total, dtype=dtype, device=a.device)
    norms = torch.zeros(total, dtype=dtype, device=a.device)
    for first in range(0, total, SAMPLES_PER_BLOCK):
        last = min(first + SAMPLES_PER_BLOCK, total)
        if packing is None:
            block_a, block_b = a[first:last], b[first:last]
        else:
            block_a, block_b = _unpacked(a, packing, first, last), _unpacked(b, packing, first, last)
        into = norms[first:last] if squares else None
        _add_block(dots[:, first:last], into, accumulating(block_a), accumulating(block_b), vectors)
    return dots.T.contiguous(), norms


def _add_block(dots: Tensor, squares: Tensor | None, a: Tensor, b: Tensor, vectors: Tensor) -> None:
    """``dots [M, n] += <vectors, b' a>``, forming the gradients of the block's samples a few rows at a time."""
    n, _, d_in = a.shape
    m, d_out = len(vectors), b.shape[2]
    row_bytes = d_in * a.element_size()
    rows = GRADIENT_BYTES // max(1, max(n, min(m, VECTORS_PER_BLOCK)) * row_bytes)
    rows = max(1, min(d_out, rows))
    at_once = min(m, max(1, GRADIENT_BYTES // (rows * row_bytes)))
    for row in range(0, d_out, rows):
        gradients = torch.bmm(b[:, :, row : row + rows].mT, a).flatten(1)
        for first in range(0, m, at_once):
            some = slice(first, first + at_once)
            dots[some] += accumulating(vectors[some, row : row + rows].flatten(1)) @ gradients.T
        if squares is not None:
            squares += torch.linalg.vector_norm(gradients, dim=1).square()


def _unpacked(rows: Tensor, packing: Packing, first: int, last: int) -> Tensor:
    """``[last - first, longest, D]``: the tokens of these samples, zeros behind each sample's end."""
    longest = max(packing.lengths[first:last])
    starts = packing.starts[first : last + 1]
    place = starts[:-1, None] + torch.arange(longest, device=rows.device)
    inside = place < starts[1:, None]
    unpacked = rows.new_zeros(last - first, longest, rows.shape[2])
    unpacked[inside] = rows.reshape(-1, rows.shape[2])[packing.order[place[inside]]]
    return unpacked
