"""Rounding to tf32. Tensor cores do not round an fp32 number, they drop its last 13 bits, which is a bias towards 0."""

from __future__ import annotations

from ostlight_kernels._triton import tl, triton


@triton.jit
def rounded_to_tf32(x):
    """fp32 to the nearest value with tf32's 10 bits of mantissa, halves to even; infinities and NaN stay."""
    bits = x.to(tl.uint32, bitcast=True)
    nearest = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
    # The carry would turn a NaN of all ones, as a GPU makes them, into -0.
    return tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
