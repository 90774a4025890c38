"""Both kernels in plain PyTorch: the truth the Triton kernels are held to, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.checks import IGNORED, check_grad_dots, check_one_step_head
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.packing import Packing

GRADIENT_BYTES = 32 * 2**20
"""Largest block of gradients, and largest of the targets they meet."""

LOGITS_BYTES = 8 * 2**20
"""Largest block of new logits."""

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


@torch.no_grad()
def one_step_head(
    h: Tensor,
    labels: Tensor,
    anchor_h: Tensor,
    anchor_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eta: float,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    """See :func:`ostlight_kernels.one_step_head`."""
    check_one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    problem = HeadProblem.of(h, labels, anchor_h, anchor_labels, eta, anchor_weights)
    head = _Head(weight, bias)
    anchor_x = _accumulating(problem.anchor_x)
    anchor_lse = head.log_sum_exp(anchor_x)
    n, t, _ = problem.x.shape
    widest = max(t, 64) * anchor_x.shape[0] * anchor_x.element_size()
    block = max(1, min(SAMPLES_PER_BLOCK, LOGITS_BYTES // widest))
    some = (problem.candidates(first, first + block) for first in range(0, n, block))
    utilities = [one.utilities(_token_gains(one, head, anchor_x, anchor_lse)) for one in some]
    return torch.cat(utilities) if utilities else anchor_x.new_zeros(0)


class _Head:
    """``x -> x W' + bias``, a slice of the vocabulary at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.vocabulary = weight.shape[0]

    def logits(self, x: Tensor, tokens: slice | Tensor) -> Tensor:
        products = x @ _accumulating(self.weight[tokens]).T
        return products if self.bias is None else products + _accumulating(self.bias[tokens])

    def slices(self, rows: int, itemsize: int) -> list[slice]:
        """Slices of the vocabulary of which ``rows`` rows of logits fit the block."""
        width = max(1, min(self.vocabulary, LOGITS_BYTES // max(1, rows * itemsize)))
        return [slice(v, min(v + width, self.vocabulary)) for v in range(0, self.vocabulary, width)]

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """Over the vocabulary, of every row of ``x [..., d]``."""
        total = x.new_full(x.shape[:-1], float("-inf"))
        for tokens in self.slices(total.numel(), x.element_size()):
            total = torch.logaddexp(total, torch.logsumexp(self.logits(x, tokens), -1))
        return total


def _token_gains(block: HeadProblem, head: _Head, anchor_x: Tensor, anchor_lse: Tensor) -> Tensor:
    """``[n, s]``: by how much each anchor token's loss falls when the head takes one step on each candidate.

    The step moves the logit of word v at anchor token s by ``-c_v`` with ``c_v = sum_t scale (h_t . h_s) e_tv``, e the
    softmax error. With ``d_v = c_y - c_v`` the loss falls by ``-log1p(sum_{v != y} p_v expm1(d_v))``: no difference
    of two nearly equal losses is ever taken.
    """
    x = _accumulating(block.x)
    n, t, _ = x.shape
    ignored = (block.y == IGNORED)[:, :, None]
    lse = head.log_sum_exp(x)[:, :, None]
    products = x.new_zeros(n, anchor_x.shape[0], t) + anchor_x @ x.mT
    steps = (products + (head.bias is not None)) * block.scale[:, None, None]

    at_label = torch.exp(head.logits(x, block.anchor_y) - lse) - (block.y[:, :, None] == block.anchor_y).to(x.dtype)
    label_change = (steps * at_label.masked_fill(ignored, 0.0).mT).sum(-1, keepdim=True)

    anchor_tokens = torch.arange(anchor_x.shape[0], device=x.device)
    small = x.new_zeros(n, anchor_x.shape[0])
    others = torch.full_like(small, float("-inf"))
    label_log_p = torch.empty_like(anchor_lse)
    for words in head.slices(max(1, n) * anchor_x.shape[0], x.element_size()):
        errors = torch.exp(head.logits(x, words) - lse).masked_fill_(ignored, 0.0)
        here = (block.y >= words.start) & (block.y < words.stop)
        i, j = here.nonzero(as_tuple=True)
        errors[i, j, block.y[here] - words.start] -= 1.0
        log_p = head.logits(anchor_x, words) - anchor_lse[:, None]
        here = (block.anchor_y >= words.start) & (block.anchor_y < words.stop)
        label_at = (anchor_tokens[here], block.anchor_y[here] - words.start)
        label_log_p[here] = log_p[label_at]
        log_p[label_at] = float("-inf")
        p = log_p.exp()
        d = torch.baddbmm(label_change, steps, errors, alpha=-1)
        if d.numel() and max(-d.min(), d.max()) < 0.5:
            grown = d.expm1_().mul_(p).sum(-1)
            small += grown
            others = torch.logaddexp(others, (grown + p.sum(-1)).clamp_min(0.0).log())
        else:
            small += (p * torch.expm1(d)).sum(-1)
            others = torch.logaddexp(others, torch.logsumexp(d.add_(log_p), -1))
    # Far from 1 the sum is taken whole, in logarithms: it neither overflows nor cancels.
    return -torch.where(small.abs() < 0.5, torch.log1p(small), torch.logaddexp(others, label_log_p))
