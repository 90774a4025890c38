"""Gradients of single samples, one at a time: slow, sure, and for any architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ostlight.errors import BadRecord
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel


def train_only(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Gradients are taken with respect to these parameters and no others."""
    wanted = {id(p) for p in parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def sample_gradient(
    model: MultimodalModel, parameters: Sequence[nn.Parameter], single: Batch
) -> tuple[Tensor, list[Tensor]]:
    """Loss ``l_i`` (float64, scalar) of a batch of one sample, and its gradient, in the parameters' order.

    Raises:
        BadRecord: ``loss_not_finite``, or ``gradient_not_finite`` with the name of the first parameter concerned.
    """
    loss = model.losses(single)[0]
    if not bool(torch.isfinite(loss)):
        raise BadRecord("loss_not_finite", f"the proxy's loss on this sample is {loss.item()}")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    for parameter, g in zip(parameters, found, strict=True):
        if not bool(torch.isfinite(g).all()):
            name = next(n for n, p in model.model.named_parameters() if p is parameter)
            raise BadRecord("gradient_not_finite", f"the gradient of {name} holds NaN or infinity")
    return loss.detach().double(), found


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product over all parameters, float64."""
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()


def norm(a: Sequence[Tensor]) -> float:
    """Euclidean norm over all parameters."""
    return float(dot(a, a).sqrt())
