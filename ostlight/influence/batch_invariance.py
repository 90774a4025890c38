"""Whether the model's loss of a sample is that sample's own: everything here is built on it."""

from __future__ import annotations

import torch
from torch import nn

from ostlight.errors import InfluenceError
from ostlight.influence.anchors import Anchors

ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest change of a loss, over its size (at least 1 nat), that rounding makes; norms round to fp32 even in fp64."""


def check_batch_invariance(model: nn.Module, anchors: Anchors) -> float:
    """Compares the losses of the first two and last two anchors alone and beside each other.

    Returns:
        the largest relative change.

    Raises:
        InfluenceError: a loss depends on what else is in the batch; names the anchor and both losses.
    """
    numbered = list(anchors.singles())
    numbered = numbered if len(numbered) <= 4 else numbered[:2] + numbered[-2:]
    singles = [single for _, single in numbered]
    with torch.no_grad():
        together = anchors.task.losses(model, anchors.task.together(singles)).double()
        alone = torch.cat([anchors.task.losses(model, single).double() for single in singles])[: len(together)]
    changes = (together - alone).abs() / alone.abs().clamp_min(1.0)
    worst = int(changes.argmax())
    if float(changes[worst]) > ALLOWED[_computed_in(model)]:
        raise InfluenceError(
            f"the model's loss is not per sample: {anchors.name_of(numbered[worst][0])} has the loss "
            f"{float(alone[worst]):.6g} alone and {float(together[worst]):.6g} beside {len(together) - 1} others, so "
            "its logits mix the samples of a batch (batch normalisation, experts with a capacity, a missing attention "
            "mask); take another model"
        )
    return float(changes[worst])


def _computed_in(model: nn.Module) -> torch.dtype:
    """What rounds the losses: mixed precision where it is on, else the weights' type."""
    parameter = next(model.parameters())
    device = parameter.device.type
    mixed = torch.is_autocast_enabled(device) and parameter.dtype.itemsize >= 4
    return torch.get_autocast_dtype(device) if mixed else parameter.dtype
