"""Once a step the ranks of a training exchange gradients, whatever each of them had to compute until then.

Ranks differ: one has images and another only text, one has more micro-batches, one has no usable record, one runs out
of memory and repeats its part. So nothing is sent while a rank computes its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 2**26
"""Gradients are sent in pieces of about this size."""


def agreed(values: Sequence[int], device: torch.device) -> list[int]:
    """Returns the largest of each value over all ranks, which all give as many."""
    largest = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def average_gradients(parameters: Mapping[str, nn.Parameter], used: Mapping[str, bool]) -> None:
    """Replaces the gradients by their means over all ranks.

    Args:
        parameters: by name, in the same order on all ranks.
        used: whether any rank has a gradient of it. One that no rank has used keeps none, as on a single device: the
            optimizer leaves such a parameter as it is.
    """
    gradients = []
    for name, parameter in parameters.items():
        if not used[name]:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        together = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        for gradient, mean in zip(bucket, together.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields neighbours of one dtype."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.nbytes for g in bucket) >= BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
