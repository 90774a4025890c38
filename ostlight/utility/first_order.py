"""The utility to first order in the step size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ostlight.model.batch import Batch
from ostlight.model.module import MultimodalModel
from ostlight.utility.anchors import AnchorSet
from ostlight.utility.gradient import dot, norm, sample_gradient, train_only


class FirstOrder:
    """``eta <g_i, g_V>``: what one small enough step does to the anchor loss, in nats.

    It leaves out curvature and can rank very differently from ``Exact`` at the step sizes training really uses.

    Args:
        model, parameters, anchors, eta: as for ``Exact``; half-precision weights are fine here.
    """

    def __init__(
        self, model: MultimodalModel, parameters: Mapping[str, nn.Parameter], anchors: AnchorSet, eta: float
    ) -> None:
        train_only(model, parameters)
        self.model, self.parameters, self.anchors, self.eta = model, list(parameters.values()), anchors, eta
        self.targets = [self._mean_gradient(w) for w in anchors.weights]

    def _mean_gradient(self, weights: Tensor) -> list[Tensor]:
        """``g_V`` of one row of anchor weights, gathered in float32 or better."""
        gathered = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in self.parameters]
        start = 0
        for batch in self.anchors.batches:
            share = weights[start : start + len(batch)]
            start += len(batch)
            if bool((share == 0).all()):
                continue
            losses = self.model.losses(batch)
            gradients = torch.autograd.grad((losses * share.to(losses.dtype)).sum(), self.parameters, allow_unused=True)
            for total, g in zip(gathered, gradients, strict=True):
                if g is not None:
                    total += g
        return gathered

    def one(self, single: Batch) -> dict[str, float | list[float]]:
        """Utility of a batch of one sample; columns as ``Exact.one``, and ``cosine`` of ``g_i`` with ``g_V``.

        Raises:
            BadRecord: the loss or the gradient is not finite.
        """
        loss, gradient = sample_gradient(self.model, self.parameters, single)
        along = [float(dot(gradient, target)) for target in self.targets]
        length, anchor_length = norm(gradient), norm(self.targets[0])
        columns: dict[str, float | list[float]] = {
            "score": self.eta * along[0],
            "loss": float(loss),
            "grad_norm": length,
            "cosine": along[0] / (length * anchor_length) if length and anchor_length else 0.0,
        }
        if self.anchors.names:
            columns["utility_by_group"] = [self.eta * a for a in along[1:]]
        return columns
