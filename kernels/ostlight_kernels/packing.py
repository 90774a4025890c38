"""Which tokens of packed rows belong to which sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ostlight_kernels.checks import check, check_count, check_tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Tokens of ``[N, T]`` rows sorted by the sample they belong to.

    Made by ``of``, which checks, once per batch and passed to every layer's :func:`~ostlight_kernels.grad_dots`: the
    checks read values, and on a GPU wait for it.

    Attributes:
        shape: ``(N, T)`` of the rows.
        num_samples: S.
        order: ``[L]`` int64, flat positions ``n * T + t`` of the tokens that belong to a sample, sample by sample.
        starts: ``[S + 1]`` int64, sample ``s`` owns ``order[starts[s]:starts[s + 1]]``.
        lengths: tokens of each sample.
    """

    shape: tuple[int, int]
    num_samples: int
    order: Tensor
    starts: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, segments: Tensor, num_samples: int) -> Packing:
        """Sorts the tokens of packed rows by sample.

        Args:
            segments: ``[N, T]`` integers, the sample of each token; -1 for padding, which belongs to nobody.
            num_samples: S; a sample that no token names has a gradient of zero.

        Raises:
            ValueError: wrong shape, layout or type, or a sample id outside -1 .. S-1.
        """
        check_tensor(segments, "segments")
        integer = not (segments.is_floating_point() or segments.is_complex() or segments.dtype == torch.bool)
        check(integer, "segments", f"dtype {segments.dtype}", "integers")
        check(segments.dim() == 2, "segments", f"shape {tuple(segments.shape)}", "[N, T]")
        check_count(num_samples, "num_samples")
        flat = segments.reshape(-1).long()
        if flat.numel():
            lowest, highest = (int(x) for x in torch.stack(torch.aminmax(flat)).tolist())
            check(lowest >= -1, "segments", f"a sample id {lowest}", "-1 for padding, or an id from 0")
            got = f"a sample id {highest} with num_samples={num_samples}"
            check(highest < num_samples, "segments", got, "ids below num_samples")
        counts = torch.bincount(flat + 1, minlength=num_samples + 1)
        padding = counts[:1]
        starts = torch.cumsum(counts, 0) - padding
        order = torch.argsort(flat, stable=True)[int(padding) :]
        shape = (segments.shape[0], segments.shape[1])
        return cls(shape, num_samples, order, starts, tuple(counts[1:].tolist()))
