"""One SGD step of a linear head on each candidate: the algebra, and the order of the work on either path.

A step on candidate i changes the logits at an anchor position of label y by ``-c_v``, ``c_v = sum_t k_t e_tv``, with
the steps ``k_t = eta / n_i (h_t . h_s)`` (one more inside the brackets where there is a bias) and the candidate's
softmax errors ``e_t``. With the probabilities ``p_v`` before the step, the loss there decreases by ``-log1p(z)``,

    z = sum_{v != y} p_v expm1(c_y - c_v)
      = m expm1(c_y) + exp(c_y) (curvature - first_order)

with ``m = sum_{v != y} p_v``, ``first_order = sum_{v != y} p_v c_v`` and
``curvature = sum_{v != y} p_v (expm1(-c_v) + c_v)``. Nothing is left out.

Small steps: ``first_order`` is linear in the errors, so for all anchor positions and all candidates it is one product
of ``[s, V]`` probabilities with ``[V, n t]`` errors, without an exponential per token of the vocabulary. Only the
curvature is needed token by token. It is about ``c_v^2 / 2``, and ``c_v^2 <= |k|^2 |e_v|^2``: the tokens where
``mean p_v |e_v|^2`` is smallest are left out, until what they could add reaches ``REMAINDER``.

Larger steps: the first form of ``z``, over the full vocabulary. No difference of two nearly equal losses is taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight_kernels.checks import IGNORED
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.reference import accumulating

REMAINDER = 2.0**-20
"""Most that the tokens left out may change a utility by, in the candidate's largest step ``|k|``."""

LARGEST_CHANGE = 1.0
"""Bound on the changes of logits up to which a step is small: beyond, the terms above cancel."""

FEWEST_TOKENS = 64
"""Of the vocabulary, whose curvature is taken first; then twice as many, and so on."""

SHARE_OF_TOKENS = 8
"""Where more than one in so many tokens matters, the full vocabulary is taken instead."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors' answer positions.

    Attributes:
        x: ``[s, D]`` features.
        y: ``[s]`` labels.
        lse: ``[s]`` log-sum-exps of their logits.
        share: ``[s]`` weights in the anchor loss.
    """

    x: Tensor
    y: Tensor
    lse: Tensor
    share: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """Some candidates against the anchors.

    Attributes:
        x, y, lse: ``[n, t, D]`` features, ``[n, t]`` labels and log-sum-exps.
        steps: ``[n, s, t]`` ``k_t``, 0 at padding, in ``unit``.
        unit: ``[n]``.
        change: ``[n, s]`` ``c_y``, by how much the logit of the anchor position's label decreases.
        size: ``[n]`` largest norm over the candidate's positions of its steps at an anchor position.
    """

    x: Tensor
    y: Tensor
    lse: Tensor
    steps: Tensor
    unit: Tensor
    change: Tensor
    size: Tensor

    def __getitem__(self, some: Tensor | slice) -> Candidates:
        if isinstance(some, Tensor) and bool(some.all()):
            return self
        return Candidates(*(getattr(self, field.name)[some] for field in fields(self)))


class HeadStep(ABC):
    """The utility of one step of the head on each candidate; subclasses sum over the vocabulary.

    Args:
        problem: checked inputs.
        weight: ``[V, D]``.
        bias: ``[V]`` or ``None``.
        anchor_x: ``[s, D]`` the anchors' features in the dtype of the products.
    """

    summed_in = torch.float64
    """Dtype in which the sums over the vocabulary are combined."""

    def __init__(self, problem: HeadProblem, weight: Tensor, bias: Tensor | None, anchor_x: Tensor) -> None:
        self.problem, self.weight, self.bias, self.vocabulary = problem, weight, bias, len(weight)
        share = problem.anchor_share.to(problem.scale.dtype)
        self.anchors = Anchors(anchor_x, problem.anchor_y, self.log_sum_exp(anchor_x), share)

    def utilities(self) -> Tensor:
        """``[N]`` nats; fp32, fp64 for fp64 input."""
        block = max(1, self.candidates_at_once())
        parts = [self.problem.candidates(k, k + block) for k in range(0, len(self.problem.x), block)]
        found = [part.utilities(self.loss_decreases(self.candidates(part))) for part in parts]
        return torch.cat(found) if found else self.problem.scale.new_zeros(0)

    def loss_decreases(self, candidates: Candidates) -> Tensor:
        """``[n, s]``: by how much each anchor position's loss decreases."""
        if candidates.x.dtype == torch.float64 or 0 in candidates.steps.shape:
            return self.by_full_vocabulary(candidates)
        found = torch.empty_like(candidates.change, dtype=self.summed_in)
        small = may_be_small(candidates.size, self._label_log_p(candidates))
        if bool(small.any()):
            found[small], small[small.clone()] = self._by_small_steps(candidates[small])
        if not bool(small.all()):
            found[~small] = self.by_full_vocabulary(candidates[~small])
        return found

    def _by_small_steps(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """``[n, s]``; and for which of the candidates ``[n]`` it is right."""
        first_order, others, mean_p, squared_errors = self.first_order(candidates)
        tokens, right = influential_tokens(squared_errors, mean_p, candidates.size)
        sums = (candidates.change, others, first_order, self.curvature(candidates, tokens))
        return loss_decrease(*(one.to(self.summed_in) for one in sums)), right

    def _label_log_p(self, candidates: Candidates) -> Tensor:
        """``[n, t]`` log-probability of each position's own label; 0 at padding."""
        labels = candidates.y.clamp_min(0)
        logits = (accumulating(candidates.x) * accumulating(self.weight[labels])).sum(-1)
        if self.bias is not None:
            logits += accumulating(self.bias[labels])
        return (logits - candidates.lse).masked_fill_(candidates.y == IGNORED, 0.0)

    @abstractmethod
    def candidates_at_once(self) -> int:
        """How many fit into bounded memory; may be 0."""

    @abstractmethod
    def log_sum_exp(self, x: Tensor) -> Tensor:
        """``[R]`` over the vocabulary, of the logits of the rows of ``x [R, D]``."""

    @abstractmethod
    def candidates(self, block: HeadProblem) -> Candidates:
        """The block's candidates against the anchors."""

    @abstractmethod
    def first_order(self, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What small steps need of the full vocabulary.

        Returns:
            first_order: ``[n, s]``.
            others: ``[s]`` ``m``.
            mean_p: ``[V]`` probability of a token at the anchor positions, 0 at labels, averaged with their shares.
            squared_errors: ``[n, V]`` squared norm over the candidate's positions of its errors at a token.
        """

    @abstractmethod
    def curvature(self, candidates: Candidates, tokens: Tensor) -> Tensor:
        """``[n, s]``, from the ``[n, H]`` tokens of each candidate; a token of -1 adds nothing."""

    @abstractmethod
    def by_full_vocabulary(self, candidates: Candidates) -> Tensor:
        """``[n, s]``: by how much each anchor position's loss decreases, for steps of any size."""


def may_be_small(size: Tensor, label_log_p: Tensor) -> Tensor:
    """``[n]`` bool: the steps are not yet known to be large, from the candidates' errors at their own labels.

    Args:
        size: ``[n]`` of ``Candidates``.
        label_log_p: ``[n, t]`` log-probability of each position's label; 0 at padding.
    """
    return size * -torch.expm1(label_log_p).amin(1) < LARGEST_CHANGE


def influential_tokens(squared_errors: Tensor, mean_p: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens whose curvature is taken, and the candidates for which these are enough.

    Args:
        squared_errors, mean_p: ``[n, V]`` and ``[V]`` fp32, of ``HeadStep.first_order``.
        size: ``[n]`` fp32, of ``Candidates``.

    Returns:
        ``[n, H]`` int64 tokens in order, -1 where a candidate needs fewer than another; and ``[n]`` bool: the step is
        small and these tokens are enough. False where a number is not finite.
    """
    n, vocabulary = squared_errors.shape
    small = size * squared_errors.amax(1).sqrt() < LARGEST_CHANGE
    could_add = squared_errors * mean_p
    total, allowed = could_add.sum(1, dtype=torch.float64), 2 * REMAINDER / size.double()
    tokens, enough = squared_errors.new_empty(n, 0, dtype=torch.int64), total <= allowed
    most = min(vocabulary, max(FEWEST_TOKENS, vocabulary // SHARE_OF_TOKENS))
    count = FEWEST_TOKENS
    while bool((small & ~enough).any()) and tokens.shape[1] < most:
        largest = torch.topk(could_add, min(count, most), dim=1)
        # How many tokens a candidate gets may not depend on the candidates beside it.
        padded = F.pad(tokens, (0, min(count, most) - tokens.shape[1]), value=-1)
        tokens = torch.where(enough[:, None], padded, largest.indices)
        enough |= total - largest.values.sum(1, dtype=torch.float64) <= allowed
        count *= 2
    return tokens.sort(1).values, small & enough


def loss_decrease(change: Tensor, others: Tensor, first_order: Tensor, curvature: Tensor) -> Tensor:
    """``[n, s]`` ``-log1p(z)`` from ``c_y [n, s]``, ``m [s]``, ``first_order`` and ``curvature [n, s]``."""
    return -torch.log1p(others * torch.expm1(change) + torch.exp(change) * (curvature - first_order))
