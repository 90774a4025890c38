"""Inner products of per-sample gradients with fixed targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels import reference
from ostlight_kernels.packing import Packing


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
    """Every sample's gradient of one linear layer, taken against M targets and dropped.

    For a linear layer with inputs ``a`` and gradients of its outputs ``b``, the gradient of its weight from sample n
    is ``b_n' a_n``, the sum over its tokens. The gradient of a bias is the same with ``a`` all ones and ``D_in`` = 1.

    Args:
        a: ``[N, T, D_in]`` inputs of the layer; bf16, fp16, fp32 or fp64.
        b: ``[N, T, D_out]`` gradients of its outputs, zero at padding where there are no segments.
        targets: ``[M, D_out, D_in]``, any M of at least 1.
        segments: ``[N, T]`` integers for packed rows, the sample of each token, -1 for padding; or a
            :class:`Packing` made from them once for all layers. ``None``: row n is sample n.
        num_samples: S, needed with a tensor of segments.
        allow_tf32: let fp32 inputs be rounded to tf32 (10 bits of mantissa) on the tensor cores.

    Returns:
        ``[N, M]`` (``[S, M]`` with segments) ``sum(b_n' a_n * targets_m)``, fp32; fp64 for fp64 input. A sample
        without tokens has zeros. The same input gives the same bits on the same device; a sample's row does not
        depend on the values of the others beside it.

    Raises:
        ValueError: shape, dtype or device mismatch, no targets, or segments out of range; names the argument.
    """
    return reference.grad_dots(a, b, targets, segments, num_samples, allow_tf32=allow_tf32)
