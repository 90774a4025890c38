"""Per-sample gradients the slow way: one sample, one plain backward pass, the whole gradient in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ostlight.models.losses import per_sample_losses


def loss_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    given = {name: value for name, value in inputs.items() if name != "labels"}
    return per_sample_losses(model(**given, use_cache=False).logits, inputs["labels"])


def gradient(parameters: dict[str, nn.Parameter], loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(parameters.items(), found, strict=True)
    }


def random_vectors(parameters: dict[str, nn.Parameter], count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *parameter.shape, generator=generator, dtype=parameter.dtype)
        for name, parameter in parameters.items()
    }


def dots(grads: dict[str, Tensor], vectors: dict[str, Tensor]) -> Tensor:
    """``[M]``"""
    return sum((vectors[name].flatten(1) @ grads[name].flatten() for name in grads), torch.zeros(()))


def squared_norm(grads: dict[str, Tensor]) -> Tensor:
    return sum((grad.square().sum() for grad in grads.values()), torch.zeros(()))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest value expected."""
    return float((got - expected).abs().max() / expected.abs().max())
