"""`one_step_head` in plain PyTorch: what the Triton kernels are compared with, and the path taken without a GPU.

fp32 inside (fp64 for fp64 input), blocked so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.checks import IGNORED
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.reference import accumulating
from ostlight_kernels.small_steps import Candidates, HeadStep

LOGITS_BYTES = 8 * 2**20
"""Largest block of logits, or of their changes."""

STEPS_BYTES = 16 * 2**20
"""Largest block of steps ``[candidates, anchor positions, positions]``, and of what is kept ``[candidates, V]``."""

FEWEST_POSITIONS = 8
"""Per candidate, in counting that block: some ``[candidates, anchor positions]`` stand beside it."""

FEWEST_TOKENS = 256
"""Of a slice of the vocabulary, beside the rows of all candidates' positions."""

CANDIDATES_PER_BLOCK = 16
"""Where every new logit is formed."""


class ReferenceHeadStep(HeadStep):
    """The utilities of a checked problem."""

    def __init__(self, problem: HeadProblem, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(problem, weight, bias, accumulating(problem.anchor_x))
        self.summed_in = self.anchors.x.dtype

    def candidates_at_once(self) -> int:
        t, s = self.problem.x.shape[1], len(self.anchors.x)
        widest = max(max(t, FEWEST_POSITIONS) * s, t * FEWEST_TOKENS, self.vocabulary)
        return STEPS_BYTES // (widest * self.anchors.x.element_size())

    def log_sum_exp(self, x: Tensor) -> Tensor:
        total = x.new_full(x.shape[:-1], float("-inf"))
        for tokens in self._slices(total.numel(), x.element_size()):
            total = torch.logaddexp(total, torch.logsumexp(self._logits(x, tokens), -1))
        return total

    def candidates(self, block: HeadProblem) -> Candidates:
        x, y, anchors = accumulating(block.x), block.y, self.anchors
        lse = self.log_sum_exp(x)
        steps = (anchors.x @ x.mT + (self.bias is not None)) * block.scale.nan_to_num(0.0)[:, None, None]
        steps.masked_fill_((y == IGNORED)[:, None], 0.0)
        at_label = torch.exp(self._logits(x, anchors.y) - lse[:, :, None])
        at_label = at_label - (y[:, :, None] == anchors.y).to(x.dtype)
        at_label.masked_fill_((y == IGNORED)[:, :, None], 0.0)
        change, unit = (steps * at_label.mT).sum(-1), torch.ones_like(block.scale)
        size = torch.linalg.vector_norm(steps, dim=2).amax(1)
        return Candidates(x, y, lse, steps, unit, change, size)

    def first_order(self, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, s = candidates.x, len(self.anchors.x)
        n, t, _ = x.shape
        squared_errors, mean_p = x.new_empty(n, self.vocabulary), x.new_empty(self.vocabulary)
        others, sums = x.new_zeros(s), x.new_zeros(s, n * t)
        for tokens in self._slices(max(s, n * t), x.element_size()):
            errors = self._errors(candidates, tokens)
            squared_errors[:, tokens] = errors.square().sum(1)
            log_p, labels = self._anchor_log_p(tokens)
            p = log_p.exp_()
            p[labels] = 0.0
            mean_p[tokens] = self.anchors.share @ p
            others += p.sum(1)
            sums.addmm_(p, errors.flatten(0, 1).T)
        return torch.einsum("snt,nst->ns", sums.view(s, n, t), candidates.steps), others, mean_p, squared_errors

    def curvature(self, candidates: Candidates, tokens: Tensor) -> Tensor:
        widest = max(candidates.x.shape[2], len(self.anchors.x))
        # As many candidates as their tokens' rows of the head and their logits fit the block.
        block = max(1, LOGITS_BYTES // max(1, 4 * tokens.shape[1] * widest))
        parts = [slice(k, k + block) for k in range(0, len(tokens), block)]
        return torch.cat([self._curvature(candidates[part], tokens[part]) for part in parts])

    def _curvature(self, some: Candidates, tokens: Tensor) -> Tensor:
        anchors, none, tokens = self.anchors, tokens < 0, tokens.clamp_min(0)
        rows = accumulating(self.weight[tokens]).mT
        errors, logits = some.x @ rows - some.lse[:, :, None], anchors.x @ rows - anchors.lse[:, None]
        if self.bias is not None:
            bias = accumulating(self.bias[tokens])[:, None]
            errors, logits = errors + bias, logits + bias
        errors = errors.exp_() - (some.y[:, :, None] == tokens[:, None]).to(errors.dtype)
        changes = some.steps @ errors.masked_fill_((some.y == IGNORED)[:, :, None], 0.0)
        left_out = (anchors.y[:, None] == tokens[:, None]) | none[:, None]
        return (logits.exp_().masked_fill_(left_out, 0.0) * (torch.expm1(-changes) + changes)).sum(2)

    def by_full_vocabulary(self, candidates: Candidates) -> Tensor:
        n, s, t = candidates.steps.shape
        widest = max(t, 64) * s * candidates.x.element_size()
        block = max(1, min(CANDIDATES_PER_BLOCK, LOGITS_BYTES // max(1, widest)))
        found = [self._block_by_full_vocabulary(candidates[k : k + block]) for k in range(0, n, block)]
        return torch.cat(found) if found else candidates.x.new_zeros(0, s)

    def _block_by_full_vocabulary(self, candidates: Candidates) -> Tensor:
        """From ``d_v = c_y - c_v``: the loss decreases by ``-log1p(sum_{v != y} p_v expm1(d_v))``."""
        n, s, _ = candidates.steps.shape
        small = candidates.x.new_zeros(n, s)
        others = torch.full_like(small, float("-inf"))
        label_log_p = torch.empty_like(self.anchors.lse)
        for tokens in self._slices(n * s, small.element_size()):
            log_p, labels = self._anchor_log_p(tokens)
            label_log_p[labels[0]] = log_p[labels]
            log_p[labels] = float("-inf")
            p = log_p.exp()
            errors = self._errors(candidates, tokens)
            d = torch.baddbmm(candidates.change[:, :, None], candidates.steps, errors, alpha=-1)
            if d.numel() and max(-d.min(), d.max()) < 0.5:
                grown = d.expm1_().mul_(p).sum(-1)
                small += grown
                others = torch.logaddexp(others, (grown + p.sum(-1)).clamp_min(0.0).log())
            else:
                small += (p * torch.expm1(d)).sum(-1)
                others = torch.logaddexp(others, torch.logsumexp(d.add_(log_p), -1))
        # Far from 1 the sum is taken whole, in logarithms: it neither overflows nor cancels.
        return -torch.where(small.abs() < 0.5, torch.log1p(small), torch.logaddexp(others, label_log_p))

    def _logits(self, x: Tensor, tokens: slice | Tensor) -> Tensor:
        products = x @ accumulating(self.weight[tokens]).T
        return products if self.bias is None else products + accumulating(self.bias[tokens])

    def _errors(self, candidates: Candidates, tokens: slice) -> Tensor:
        """``[n, t, w]`` softmax minus one-hot of a slice of the vocabulary."""
        y = candidates.y
        errors = self._logits(candidates.x, tokens).sub_(candidates.lse[:, :, None]).exp_()
        errors.masked_fill_((y == IGNORED)[:, :, None], 0.0)
        here = (y >= tokens.start) & (y < tokens.stop)
        i, j = here.nonzero(as_tuple=True)
        errors[i, j, y[here] - tokens.start] -= 1.0
        return errors

    def _anchor_log_p(self, tokens: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``[s, w]`` log-probabilities of a slice of the vocabulary, and where in it the labels are."""
        y = self.anchors.y
        here = (y >= tokens.start) & (y < tokens.stop)
        log_p = self._logits(self.anchors.x, tokens).sub_(self.anchors.lse[:, None])
        return log_p, (here.nonzero()[:, 0], y[here] - tokens.start)

    def _slices(self, rows: int, itemsize: int) -> list[slice]:
        """Slices of the vocabulary of which ``rows`` rows of logits fit the block."""
        width = max(1, min(self.vocabulary, LOGITS_BYTES // max(1, rows * itemsize)))
        return [slice(v, min(v + width, self.vocabulary)) for v in range(0, self.vocabulary, width)]
