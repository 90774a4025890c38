"""Gradients of single samples, one at a time: slow, sure, and for any architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import BadRecord
from ostlight.influence.shared_passes import gradient_parts, norm_over_ranks
from ostlight.influence.task import Task


def train_only(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Makes these parameters ask for gradients, and no others."""
    wanted = {id(p) for p in parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def sample_gradient(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], single: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss ``l_i`` (float64, scalar) of a batch of one sample, and its gradient, by parameter name.

    Raises:
        BadRecord: ``loss_not_finite``, or ``gradient_not_finite`` with the name of the first parameter concerned.
    """
    loss = task.losses(model, single)[0]
    _check_loss(loss)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }
    for name, gradient in found.items():
        if not bool(torch.isfinite(gradient).all()):
            raise BadRecord("gradient_not_finite", f"the gradient of {name} holds NaN or infinity")
    return loss.detach().double(), found


def sample_gradient_parts(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], single: Any
) -> dict[str, Tensor]:
    """This rank's part of the gradient that ``sample_gradient`` gives, of a model sharded by FSDP2; all ranks call it
    with the same sample.

    Raises:
        BadRecord: as ``sample_gradient``, on all ranks.
    """
    losses: list[Tensor] = []

    def run() -> Iterator[Tensor]:
        losses.append(task.losses(model, single)[0])
        yield losses[0]

    parts = gradient_parts(model, parameters, run())
    _check_loss(losses[0])
    if not math.isfinite(norm_over_ranks(parts, next(model.parameters()).device)):
        raise BadRecord("gradient_not_finite", "the gradient holds NaN or infinity")
    return parts


def _check_loss(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss)):
        raise BadRecord("loss_not_finite", f"the model's loss on this sample is {loss.item()}")


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all parameters, float64."""
    return torch.stack([(a[name].double() * b[name].double()).sum() for name in a]).sum()


def norm(gradient: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all parameters."""
    return float(dot(gradient, gradient).sqrt())
