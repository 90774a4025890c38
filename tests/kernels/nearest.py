"""Rounding to tf32 by its definition, which the kernels' own is held to."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_tf32(x: Tensor) -> Tensor:
    """In float64: 11 bits, counting the one that is not stored; halves to even."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)
