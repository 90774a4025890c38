"""Squared norms of per-sample gradients from their factors.

A weight gradient is ``sum_t left_t (x) right_t`` over the sample's tokens. Its squared norm is
``sum_ts <left_t, left_s> <right_t, right_s>``, which needs no gradient at all and is the cheaper way where the tokens
are few against the weight's width; elsewhere the gradient of one sample is formed and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PRODUCT_ENTRIES = 1 << 23
"""Most entries of gradients, or of inner products of tokens, formed at once."""


@dataclass(frozen=True)
class Tokens:
    """A sum of outer products: a matrix's output gradients with its inputs, or a table's ids with output gradients.

    Attributes:
        owners: ``[R]`` sample of each row.
        left: ``[R, T, D_out]``, or ``[R, T]`` whole numbers that stand for one-hot vectors.
        right: ``[R, T, D_in]``.
        row_is_sample: row n is all of sample n.
    """

    owners: Tensor
    left: Tensor
    right: Tensor
    row_is_sample: bool = False

    def of_sample(self, sample: int) -> tuple[Tensor, Tensor]:
        rows = self.owners == sample
        left, right = self.left[rows], self.right[rows]
        left = left.flatten() if self.is_table else wide(left.flatten(0, 1))
        return left, wide(right.flatten(0, 1))

    @property
    def is_table(self) -> bool:
        return not self.left.is_floating_point()


@dataclass(frozen=True)
class Formed:
    """Per-sample gradients that exist anyway, ``[N, *shape]``: scales, biases, class tokens."""

    grads: Tensor


Factor = Tokens | Formed


def squared_norms(factors: Sequence[Factor], num_samples: int, shape: torch.Size) -> Tensor:
    """``[N]`` squared norm of each sample's gradient of one parameter, summed over its uses before the square.

    Args:
        factors: one per use.
        num_samples: N.
        shape: the parameter's.
    """
    if all(isinstance(factor, Formed) for factor in factors):
        return sum(wide(factor.grads) for factor in factors if isinstance(factor, Formed)).flatten(1).square().sum(1)  # type: ignore[union-attr]
    only = factors[0]
    if len(factors) == 1 and isinstance(only, Tokens) and only.row_is_sample and not only.is_table:
        return _of_rows(only.left, only.right)
    return torch.stack([_of_sample(factors, sample, shape) for sample in range(num_samples)])


def _of_rows(left: Tensor, right: Tensor) -> Tensor:
    """Of every row's ``left' right``, many rows at once: a GPU would spend its time waiting for single samples.

    bf16 products stay bf16, each entry rounded once: a norm averages that out, and fp32 products are an order of
    magnitude slower on tensor cores. fp16 could lose the squares of small gradients, so it is widened.
    """
    if left.dtype != torch.bfloat16 or right.dtype != torch.bfloat16:
        left, right = wide(left), wide(right)
    _, tokens, rows = left.shape
    columns = right.shape[2]
    by_pairs = tokens * (rows + columns) <= rows * columns
    accumulating = torch.float64 if left.dtype == torch.float64 else torch.float32
    entries = 2 * tokens**2 if by_pairs else rows * columns
    step = max(1, PRODUCT_ENTRIES // max(1, entries))
    found = []
    for some_left, some_right in zip(left.split(step), right.split(step), strict=True):
        if by_pairs:
            pairs = wide(some_left @ some_left.mT).mul_(some_right @ some_right.mT)
            found.append(pairs.sum((1, 2)).clamp_min_(0))
        else:
            gradients = some_left.mT @ some_right
            found.append(torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=accumulating).square())
    return torch.cat(found) if found else wide(left.new_zeros(0))


def _of_sample(factors: Sequence[Factor], sample: int, shape: torch.Size) -> Tensor:
    rows = shape[0]
    columns = shape.numel() // rows
    pairs = [factor.of_sample(sample) for factor in factors if isinstance(factor, Tokens)]
    tokens = sum(len(right) for _, right in pairs)
    if len(pairs) == len(factors) and tokens * (rows + columns) <= rows * columns:
        total = torch.zeros((), dtype=pairs[0][1].dtype, device=pairs[0][1].device)
        for first, (left, right) in enumerate(pairs):
            for second, (other_left, other_right) in enumerate(pairs[first:], start=first):
                inner = (_inner(left, other_left, right.dtype) * (right @ other_right.T)).sum()
                total = total + (inner if first == second else 2 * inner)
        return total.clamp_min(0)
    gradient = torch.zeros(rows, columns, dtype=pairs[0][1].dtype, device=pairs[0][1].device)
    for left, right in pairs:
        if left.is_floating_point():
            gradient.addmm_(left.T, right)
        else:
            gradient.index_add_(0, left, right)
    for factor in factors:
        if isinstance(factor, Formed):
            gradient += factor.grads[sample].reshape(rows, columns)
    return gradient.square().sum()


def _inner(left: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """``[T, S]`` inner products of dense or one-hot vectors."""
    if left.is_floating_point() and other.is_floating_point():
        return left @ other.T
    if left.is_floating_point():
        return left[:, other]
    if other.is_floating_point():
        return other[:, left].T
    return (left[:, None] == other[None, :]).to(dtype)


def wide(tensor: Tensor) -> Tensor:
    """fp32, or fp64 where it was: the precision everything is accumulated in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
