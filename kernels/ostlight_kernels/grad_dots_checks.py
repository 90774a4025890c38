"""Checks the arguments of ``grad_dots``: every message names the argument, what it got and what it takes."""

from __future__ import annotations

from torch import Tensor

from ostlight_kernels.checks import DTYPES, check, check_alike, check_count, check_device, check_shape, check_tensor
from ostlight_kernels.packing import Packing


def check_grad_dots(
    a: Tensor, b: Tensor, targets: Tensor, segments: Tensor | Packing | None, num_samples: int | None
) -> None:
    """The arguments of ``grad_dots``; the values in ``segments`` are checked by :class:`Packing`."""
    for name, tensor in (("a", a), ("b", b), ("targets", targets)):
        check_tensor(tensor, name)
    check(a.dtype in DTYPES, "a", f"dtype {a.dtype}", "bf16, fp16, fp32 or fp64")
    check_shape(a, "a", "[N, T, D_in]", None, None, None)
    n, t, d_in = a.shape
    check_shape(b, "b", f"[N, T, D_out] with N={n} and T={t} of a", n, t, None)
    d_out = b.shape[2]
    check_shape(targets, "targets", f"[M, D_out, D_in] with D_out={d_out} of b and D_in={d_in} of a", None, d_out, d_in)
    check(targets.shape[0] >= 1, "targets", "M=0", "at least one target")
    check(d_in >= 1, "a", f"shape {tuple(a.shape)}", "D_in of at least 1")
    check(d_out >= 1, "b", f"shape {tuple(b.shape)}", "D_out of at least 1")
    check_alike(b, "b", a, "a")
    check_alike(targets, "targets", a, "a")
    if num_samples is not None:
        check_count(num_samples, "num_samples")
    if segments is None:
        wanted = num_samples is None or num_samples == n
        check(wanted, "num_samples", num_samples, f"None or N={n} of a where there are no segments")
    elif not isinstance(segments, Packing):
        check_tensor(segments, "segments")
        check_shape(segments, "segments", f"[N, T] with N={n} and T={t} of a", n, t)
        check_device(segments, "segments", a, "a")
        check(num_samples is not None, "num_samples", None, "the number of samples in segments")
    else:
        check(segments.shape == (n, t), "segments", f"rows {segments.shape}", f"rows of N={n} and T={t} of a")
        check_device(segments.order, "segments", a, "a")
        fits = num_samples is None or num_samples == segments.num_samples
        check(fits, "num_samples", num_samples, f"None or the {segments.num_samples} of segments")
