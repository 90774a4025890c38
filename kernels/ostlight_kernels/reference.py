"""`grad_dots` in plain PyTorch: the truth the Triton kernel is held to, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.grad_dots_checks import check_grad_dots
from ostlight_kernels.packing import Packing

GRADIENT_BYTES = 32 * 2**20
"""Largest block of gradients, and largest of the targets they meet."""

SAMPLES_PER_BLOCK = 16

TARGETS_PER_BLOCK = 128
"""More targets meet the gradients in turns, where otherwise too few rows of these would fit."""

FEW_COLUMNS = 32
"""Up to this many inputs (an adapter's rank) a CPU forms the transposed gradient several times faster."""


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
    return _dots_and_squares(a, b, targets, segments, num_samples, squares=False)[0]


@torch.no_grad()
def grad_dots_and_squares(
    a: Tensor, b: Tensor, targets: Tensor, segments: Packing | None = None
) -> tuple[Tensor, Tensor]:
    """``grad_dots`` and the squared norm ``[N]`` of each sample's gradient, which is formed once for both."""
    return _dots_and_squares(a, b, targets, segments, None, squares=True)


def _dots_and_squares(
    a: Tensor,
    b: Tensor,
    targets: Tensor,
    segments: Tensor | Packing | None,
    num_samples: int | None,
    squares: bool,
) -> tuple[Tensor, Tensor]:
    check_grad_dots(a, b, targets, segments, num_samples)
    if isinstance(segments, Tensor):
        assert num_samples is not None
        segments = Packing.of(segments, num_samples)
    if a.device.type == "cpu" and a.shape[2] <= FEW_COLUMNS < b.shape[2]:
        a, b, targets = b, a, targets.mT
    total = a.shape[0] if segments is None else segments.num_samples
    accumulating = torch.float64 if a.dtype == torch.float64 else torch.float32
    # [M, N] and the targets on the left: several times faster than [N, M] in the BLAS at hand.
    dots = torch.zeros(targets.shape[0], total, dtype=accumulating, device=a.device)
    norms = torch.zeros(total, dtype=accumulating, device=a.device)
    for first in range(0, total, SAMPLES_PER_BLOCK):
        last = min(first + SAMPLES_PER_BLOCK, total)
        if segments is None:
            block_a, block_b = a[first:last], b[first:last]
        else:
            block_a, block_b = _unpacked(a, segments, first, last), _unpacked(b, segments, first, last)
        into = norms[first:last] if squares else None
        _add_block(dots[:, first:last], into, _accumulating(block_a), _accumulating(block_b), targets)
    return dots.T.contiguous(), norms


def _add_block(dots: Tensor, squares: Tensor | None, a: Tensor, b: Tensor, targets: Tensor) -> None:
    """``dots [M, n] += <targets, b' a>``, forming the gradients of the block's samples a few rows at a time."""
    n, _, d_in = a.shape
    m, d_out = len(targets), b.shape[2]
    row_bytes = d_in * a.element_size()
    rows = GRADIENT_BYTES // max(1, max(n, min(m, TARGETS_PER_BLOCK)) * row_bytes)
    rows = max(1, min(d_out, rows))
    at_once = min(m, max(1, GRADIENT_BYTES // (rows * row_bytes)))
    for row in range(0, d_out, rows):
        gradients = torch.bmm(b[:, :, row : row + rows].mT, a).flatten(1)
        for first in range(0, m, at_once):
            some = slice(first, first + at_once)
            dots[some] += _accumulating(targets[some, row : row + rows].flatten(1)) @ gradients.T
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
