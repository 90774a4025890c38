"""First order without a backward pass: ``<g_i, v>`` is the derivative of ``l_i`` along ``v``.

Two forward passes on shifted weights give it for any architecture, without knowing its layers:
``(l_i(theta + h v) - l_i(theta - h v)) / 2h``. The error is ``h^2 / 6`` times the third derivative, plus rounding of
the losses over ``h``. Neither is known beforehand, so the step is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.adapters import merged_forwards
from ostlight.influence.gradients.engine import Losses

STEPS_TRIED = 10
"""Step sizes tried, each a quarter of the one before: over five decades truncation gives way to rounding."""

LARGEST_SHIFT = 0.1
"""Norm of the largest shift tried, over the norm of the parameters."""


@dataclass(frozen=True)
class DifferenceStep:
    """The step of a central difference, and its error.

    Attributes:
        size: h.
        relative_error: root mean square of ``D(h) - D(h/4)`` over the samples tried, over that of ``D(h/4)``. Where
            truncation dominates it is 15/16 of the error of ``D(h)``; where rounding does, about four times it.
    """

    size: float
    relative_error: float


def directional_derivatives(
    losses: Losses,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor],
    size: float,
    model: nn.Module | None = None,
) -> Tensor:
    """``[N]`` fp64 ``<g_i, direction>`` for every sample of a batch by central difference.

    Args:
        losses: called twice, under ``no_grad``; per-sample losses in fp32 or fp64.
        parameters: shifted in place and restored to the bit.
        direction: ``[*shape]`` per parameter.
        size: h, from ``find_difference_step``.
        model: what ``losses`` runs; given, its low-rank adapters among the parameters are computed in one product.

    Raises:
        InfluenceError: weights in less than fp32, where the shift would be lost in rounding, or a direction that does
            not fit the parameters.
    """
    _check(parameters, direction)
    with shiftable(parameters) as shift, _one_product(model, parameters), torch.no_grad():
        return _central(losses, shift, direction, size)


def find_difference_step(
    losses: Losses,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor],
    model: nn.Module | None = None,
    norm: Callable[[Mapping[str, Tensor]], float] | None = None,
) -> DifferenceStep:
    """The step whose quarter gives the same derivatives most nearly, from trying on a few samples once per direction.

    Steps go down by quarters from a shift of ``LARGEST_SHIFT`` of the weights' norm; ``2 * STEPS_TRIED`` passes.

    Raises:
        InfluenceError: as ``directional_derivatives``; or no step gives finite losses.
    """
    _check(parameters, direction)
    norm = norm or norm_of  # over all ranks, where each holds a part
    length = norm(direction)
    if length == 0:
        raise InfluenceError("the direction is zero everywhere; a derivative along it says nothing")
    largest = LARGEST_SHIFT * norm(parameters) / length
    sizes = [largest * 0.25**rung for rung in range(STEPS_TRIED)]
    with shiftable(parameters) as shift, _one_product(model, parameters), torch.no_grad():
        tried = [_central(losses, shift, direction, size) for size in sizes]
    steps = [
        DifferenceStep(size, float((coarse - fine).square().mean().sqrt() / fine.square().mean().sqrt()))
        for size, coarse, fine in zip(sizes, tried, tried[1:], strict=False)
        if bool((coarse.isfinite() & fine.isfinite()).all()) and bool(fine.any())
    ]
    if not steps:
        raise InfluenceError(
            f"no step from {sizes[0]:.3g} to {sizes[-1]:.3g} gives finite losses that differ; use a backward pass"
        )
    return min(steps, key=lambda step: step.relative_error)


def _one_product(model: nn.Module | None, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
    return nullcontext() if model is None else merged_forwards(model, parameters)


Shift = Callable[[Mapping[str, Tensor], float], None]


def _central(losses: Losses, shift: Shift, direction: Mapping[str, Tensor], size: float) -> Tensor:
    shift(direction, size)
    ahead = losses().double()
    shift(direction, -size)
    behind = losses().double()
    return (ahead - behind) / (2 * size)


@contextmanager
def shiftable(parameters: Mapping[str, nn.Parameter]) -> Iterator[Shift]:
    """Gives ``shift(direction, size)``: the parameters at ``start + size * direction``, restored in the end."""
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def shift(direction: Mapping[str, Tensor], size: float) -> None:
        for name, parameter in parameters.items():
            # From the start each time: shifting back and forth would leave rounding behind.
            torch.add(start[name], direction[name].to(parameter.dtype), alpha=size, out=parameter.data)

    try:
        yield shift
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(start[name])


def _check(parameters: Mapping[str, nn.Parameter], direction: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InfluenceError(
                f"parameter {name} is {parameter.dtype}: a small shift is lost in its rounding; "
                "load the model in fp32, or use the gradient engine"
            )
        if name not in direction or direction[name].shape != parameter.shape:
            got = list(direction[name].shape) if name in direction else "nothing"
            raise InfluenceError(f"the direction has {got} for parameter {name} of shape {list(parameter.shape)}")


def norm_of(vectors: Mapping[str, Tensor]) -> float:
    squares = sum(float(vector.detach().double().square().sum()) for vector in vectors.values())
    return float(squares**0.5)
