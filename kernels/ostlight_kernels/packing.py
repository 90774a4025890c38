"""Which tokens of packed rows belong to which sample."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ostlight_kernels.checks import check, check_count, check_tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Tokens of ``[N, T]`` rows sorted by the sample they belong to.

    Made once per batch and passed to every layer's :func:`~ostlight_kernels.grad_dots`, so that the checks (which
    read values, and on a GPU wait for it) are paid once and not once per layer.

    Attributes:
        shape: ``(N, T)`` of the rows.
        num_samples: S.
        order: ``[L]`` int64, flat positions ``n * T + t`` of the tokens that belong to a sample, sample by sample.
        starts: ``[S + 1]`` int64, sample ``s`` owns ``order[starts[s]:starts[s + 1]]``.
        lengths: tokens of each sample.

    Raises:
        ValueError: made by hand of parts that do not fit together; the kernels would read beyond the rows.
    """

    shape: tuple[int, int]
    num_samples: int
    order: Tensor
    starts: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        check(len(self.shape) == 2, "shape", self.shape, "(N, T)")
        for size in self.shape:
            check_count(size, "shape")
        check_count(self.num_samples, "num_samples")
        _check_places(self.order, "order")
        _check_places(self.starts, "starts")
        check(self.starts.device == self.order.device, "starts", self.starts.device, f"{self.order.device} of order")
        tokens = self.shape[0] * self.shape[1]
        if self.order.numel():
            lowest, highest = (int(x) for x in torch.stack(torch.aminmax(self.order)).tolist())
            within = lowest >= 0 and highest < tokens
            check(within, "order", f"{lowest} to {highest}", f"places of the {tokens} tokens of shape")
        starts = self.starts.tolist()
        whole = len(starts) == self.num_samples + 1 and starts[0] == 0 and starts[-1] == len(self.order)
        takes = f"{self.num_samples + 1} places from 0 to {len(self.order)}"
        check(whole, "starts", f"{len(starts)} from {starts[:1]} to {starts[-1:]}", takes)
        lengths = tuple(last - first for first, last in pairwise(starts))
        check(min(lengths, default=0) >= 0, "starts", "places that fall", "places that do not fall")
        check(tuple(self.lengths) == lengths, "lengths", self.lengths, f"{lengths}, as starts has them")

    @classmethod
    def of(cls, segments: Tensor, num_samples: int) -> Packing:
        """Sort the tokens of packed rows by sample.

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
            check(
                highest < num_samples,
                "segments",
                f"a sample id {highest} with num_samples={num_samples}",
                "ids below num_samples",
            )
        counts = torch.bincount(flat + 1, minlength=num_samples + 1)
        padding = counts[:1]
        starts = torch.cumsum(counts, 0) - padding
        order = torch.argsort(flat, stable=True)[int(padding) :]
        lengths = tuple(int(x) for x in counts[1:].tolist())
        return cls((segments.shape[0], segments.shape[1]), num_samples, order, starts, lengths)


def _check_places(tensor: Tensor, name: str) -> None:
    check_tensor(tensor, name)
    check(tensor.dtype == torch.int64, name, f"dtype {tensor.dtype}", "int64")
    check(tensor.dim() == 1 and tensor.is_contiguous(), name, f"shape {tuple(tensor.shape)}", "one contiguous row")
