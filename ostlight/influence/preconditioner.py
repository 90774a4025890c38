"""The shape of the simulated step: plain SGD, or as Adam would take it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ostlight.influence.anchors import Anchors
from ostlight.influence.sample_gradient import sample_gradient, train_only

EPSILON = 1e-8
"""Added to the root of the second moment, as in Adam."""

GradientScale = dict[str, Tensor]
"""What each entry of a gradient is multiplied by before the step, by parameter name."""


def adam_scale(parameters: Mapping[str, nn.Parameter], second_moments: Mapping[str, Tensor]) -> GradientScale:
    """``1 / (sqrt(v) + eps)`` for the parameters, from bias-corrected second moments ``v`` (Adam's ``exp_avg_sq``).

    They are frozen: a score may not depend on what was scored before it.
    """
    scale = {name: 1 / (second_moments[name].sqrt() + EPSILON) for name in parameters}
    return {name: s.to(parameters[name].device) for name, s in scale.items()}


def anchor_second_moments(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], anchors: Anchors
) -> dict[str, Tensor]:
    """Mean square of the anchors' gradients, for ``adam_scale`` where there is no optimizer to take moments from."""
    train_only(model, parameters)
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for _, single in anchors.singles():
        _, gradient = sample_gradient(model, anchors.task, parameters, single)
        for name, g in gradient.items():
            sums[name] += g.float().square()
    return {name: s / len(anchors) for name, s in sums.items()}
