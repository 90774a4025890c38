"""`one_step_head` in plain PyTorch: the truth the Triton kernels are held to, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ostlight_kernels.checks import IGNORED, check_one_step_head
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.small_steps import gains_either_way, loss_falls, strong_words

LOGITS_BYTES = 8 * 2**20
"""Largest block of logits, or of their changes."""

STEPS_BYTES = 16 * 2**20
"""Largest block of steps ``[candidates, anchor tokens, tokens]``, and of what is kept ``[candidates, V]``."""

FEWEST_TOKENS = 8
"""Per candidate, in counting that block: some ``[candidates, anchor tokens]`` stand beside it."""

FEWEST_WORDS = 256
"""Of a slice, beside the rows of all candidates' tokens."""

CANDIDATES_PER_BLOCK = 16
"""Where every new logit is formed."""


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
    anchors = _Anchors.of(problem, head)
    n, t, _ = problem.x.shape
    widest = max(max(t, FEWEST_TOKENS) * len(anchors.x), t * FEWEST_WORDS, head.vocabulary)
    block = max(1, STEPS_BYTES // (widest * anchors.x.element_size()))
    some = (problem.candidates(first, first + block) for first in range(0, n, block))
    utilities = [one.utilities(_gains(one, head, anchors)) for one in some]
    return torch.cat(utilities) if utilities else anchors.x.new_zeros(0)


def _accumulating(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Head:
    """``x -> x W' + bias``, a slice of the vocabulary at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.vocabulary = weight.shape[0]

    def logits(self, x: Tensor, words: slice | Tensor) -> Tensor:
        products = x @ _accumulating(self.weight[words]).T
        return products if self.bias is None else products + _accumulating(self.bias[words])

    def slices(self, rows: int, itemsize: int) -> list[slice]:
        """Slices of the vocabulary of which ``rows`` rows of logits fit the block."""
        width = max(1, min(self.vocabulary, LOGITS_BYTES // max(1, rows * itemsize)))
        return [slice(v, min(v + width, self.vocabulary)) for v in range(0, self.vocabulary, width)]

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """Over the vocabulary, of every row of ``x [..., d]``."""
        total = x.new_full(x.shape[:-1], float("-inf"))
        for words in self.slices(total.numel(), x.element_size()):
            total = torch.logaddexp(total, torch.logsumexp(self.logits(x, words), -1))
        return total


@dataclass(frozen=True, slots=True)
class _Anchors:
    """The anchors' answer tokens: features ``[s, d]``, labels, log-sum-exps and shares ``[s]``."""

    x: Tensor
    y: Tensor
    lse: Tensor
    share: Tensor

    @classmethod
    def of(cls, problem: HeadProblem, head: _Head) -> _Anchors:
        x = _accumulating(problem.anchor_x)
        return cls(x, problem.anchor_y, head.log_sum_exp(x), problem.anchor_share.to(x.dtype))

    def log_p(self, head: _Head, words: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``[s, w]`` log-probabilities of a slice of words, and where in it the labels are."""
        here = (self.y >= words.start) & (self.y < words.stop)
        return head.logits(self.x, words).sub_(self.lse[:, None]), (here.nonzero()[:, 0], self.y[here] - words.start)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Some candidates against the anchors.

    Attributes:
        x, y: ``[n, t, d]`` features and ``[n, t]`` labels.
        lse: ``[n, t, 1]`` log-sum-exps.
        steps: ``[n, s, t]``, ``k = scale (h_t . h_s)``, one more where there is a bias, 0 at padding.
        change: ``[n, s, 1]``, by how much the logit of the anchor token's label falls.
    """

    x: Tensor
    y: Tensor
    lse: Tensor
    steps: Tensor
    change: Tensor

    @classmethod
    def of(cls, block: HeadProblem, head: _Head, anchors: _Anchors) -> _Candidates:
        x, y = _accumulating(block.x), block.y
        lse = head.log_sum_exp(x)[:, :, None]
        steps = x.new_zeros(x.shape[0], anchors.x.shape[0], x.shape[1]) + anchors.x @ x.mT
        steps = (steps + (head.bias is not None)) * block.scale.nan_to_num(0.0)[:, None, None]
        steps.masked_fill_((y == IGNORED)[:, None], 0.0)
        at_label = torch.exp(head.logits(x, anchors.y) - lse) - (y[:, :, None] == anchors.y).to(x.dtype)
        at_label.masked_fill_((y == IGNORED)[:, :, None], 0.0)
        return cls(x, y, lse, steps, (steps * at_label.mT).sum(-1, keepdim=True))

    def __getitem__(self, some: slice | Tensor) -> _Candidates:
        return _Candidates(self.x[some], self.y[some], self.lse[some], self.steps[some], self.change[some])

    def label_log_p(self, head: _Head) -> Tensor:
        """``[n, t]`` log-probability of each token's own label; 0 at padding."""
        labels = self.y.clamp_min(0)
        logits = (self.x * _accumulating(head.weight[labels])).sum(-1)
        if head.bias is not None:
            logits += _accumulating(head.bias[labels])
        return (logits - self.lse[:, :, 0]).masked_fill_(self.y == IGNORED, 0.0)

    def errors(self, head: _Head, words: slice) -> Tensor:
        """``[n, t, w]`` softmax minus one-hot."""
        errors = head.logits(self.x, words).sub_(self.lse).exp_()
        errors.masked_fill_((self.y == IGNORED)[:, :, None], 0.0)
        here = (self.y >= words.start) & (self.y < words.stop)
        i, j = here.nonzero(as_tuple=True)
        errors[i, j, self.y[here] - words.start] -= 1.0
        return errors


def _gains(block: HeadProblem, head: _Head, anchors: _Anchors) -> Tensor:
    """``[n, s]``: by how much each anchor token's loss falls when the head takes one step on each candidate."""
    candidates = _Candidates.of(block, head, anchors)
    if block.x.dtype == torch.float64 or 0 in candidates.steps.shape:
        return _gains_by_every_word(candidates, head, anchors)
    return gains_either_way(
        candidates,
        torch.empty_like(candidates.change[:, :, 0]),
        torch.linalg.vector_norm(candidates.steps, dim=2).amax(1),
        candidates.label_log_p(head),
        partial(_gains_of_small_steps, head=head, anchors=anchors),
        partial(_gains_by_every_word, head=head, anchors=anchors),
    )


def _gains_of_small_steps(
    candidates: _Candidates, size: Tensor, head: _Head, anchors: _Anchors
) -> tuple[Tensor, Tensor]:
    """As ``small_steps`` has it; and for which of the candidates ``[n]`` that is right."""
    x, s = candidates.x, anchors.x.shape[0]
    n, t, _ = x.shape
    strength, felt = x.new_empty(n, head.vocabulary), x.new_empty(head.vocabulary)
    others, sums = x.new_zeros(s), x.new_zeros(s, n * t)
    for words in head.slices(max(s, n * t), x.element_size()):
        errors = candidates.errors(head, words)
        strength[:, words] = errors.square().sum(1)
        log_p, labels = anchors.log_p(head, words)
        p = log_p.exp_()
        p[labels] = 0.0
        felt[words] = anchors.share @ p
        others += p.sum(1)
        sums.addmm_(p, errors.flatten(0, 1).T)
    slope = torch.einsum("snt,nst->ns", sums.view(s, n, t), candidates.steps)
    strong, right = strong_words(strength, felt, size)
    bend = torch.cat([_bend(candidates[i], strong[i], head, anchors) for i in _blocks(strong, x.shape[2], s)])
    return loss_falls(candidates.change[:, :, 0], others, slope, bend), right


def _bend(some: _Candidates, words: Tensor, head: _Head, anchors: _Anchors) -> Tensor:
    """``[n, s]``: what the exponentials add to the slope at some words ``[n, H]``, others for every candidate.

    Words of -1 add nothing.
    """
    none, words = words < 0, words.clamp_min(0)
    rows = _accumulating(head.weight[words]).mT
    errors, logits = some.x @ rows - some.lse, anchors.x @ rows - anchors.lse[:, None]
    if head.bias is not None:
        bias = _accumulating(head.bias[words])[:, None]
        errors, logits = errors + bias, logits + bias
    errors = errors.exp_() - (some.y[:, :, None] == words[:, None]).to(errors.dtype)
    changes = some.steps @ errors.masked_fill_((some.y == IGNORED)[:, :, None], 0.0)
    left_out = (anchors.y[:, None] == words[:, None]) | none[:, None]
    return (logits.exp_().masked_fill_(left_out, 0.0) * (torch.expm1(-changes) + changes)).sum(2)


def _blocks(words: Tensor, d: int, s: int) -> list[slice]:
    """Of the candidates, such that their words' rows of the head and their logits fit the block."""
    n, h = words.shape
    block = max(1, LOGITS_BYTES // max(1, 4 * h * max(d, s)))
    return [slice(first, min(first + block, n)) for first in range(0, n, block)]


def _gains_by_every_word(candidates: _Candidates, head: _Head, anchors: _Anchors) -> Tensor:
    """By the changes ``-c_v`` of all logits, however large.

    With ``d_v = c_y - c_v`` the loss falls by ``-log1p(sum_{v != y} p_v expm1(d_v))``: no difference of two nearly
    equal losses is ever taken.
    """
    n, s, t = candidates.steps.shape
    widest = max(t, 64) * s * candidates.x.element_size()
    block = max(1, min(CANDIDATES_PER_BLOCK, LOGITS_BYTES // max(1, widest)))
    some = [candidates[first : first + block] for first in range(0, n, block)]
    gains = [_block_by_every_word(one, head, anchors) for one in some]
    return torch.cat(gains) if gains else candidates.x.new_zeros(0, s)


def _block_by_every_word(candidates: _Candidates, head: _Head, anchors: _Anchors) -> Tensor:
    n, s, _ = candidates.steps.shape
    small = candidates.x.new_zeros(n, s)
    others = torch.full_like(small, float("-inf"))
    label_log_p = torch.empty_like(anchors.lse)
    for words in head.slices(n * s, small.element_size()):
        log_p, labels = anchors.log_p(head, words)
        label_log_p[labels[0]] = log_p[labels]
        log_p[labels] = float("-inf")
        p = log_p.exp()
        d = torch.baddbmm(candidates.change, candidates.steps, candidates.errors(head, words), alpha=-1)
        if d.numel() and max(-d.min(), d.max()) < 0.5:
            grown = d.expm1_().mul_(p).sum(-1)
            small += grown
            others = torch.logaddexp(others, (grown + p.sum(-1)).clamp_min(0.0).log())
        else:
            small += (p * torch.expm1(d)).sum(-1)
            others = torch.logaddexp(others, torch.logsumexp(d.add_(log_p), -1))
    # Far from 1 the sum is taken whole, in logarithms: it neither overflows nor cancels.
    return -torch.where(small.abs() < 0.5, torch.log1p(small), torch.logaddexp(others, label_log_p))
