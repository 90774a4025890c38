from __future__ import annotations

from collections.abc import Callable

import families
import oracle
import pytest
import torch
from torch import nn

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.forward_mode import directional_derivatives, find_difference_step
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters

Tiny = Callable[..., nn.Module]


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_derivatives_agree_with_the_engine_and_their_own_error_is_honest(
    tiny: Tiny, family: str, dtype: torch.dtype, bar: float
) -> None:
    model, inputs = tiny(family).to(dtype), families.batch(family)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    parameters = select_parameters(model, "blocks")
    single = families.alone(family, inputs, 2)
    with families.DoublePrecision():
        direction = oracle.gradient(parameters, lambda: oracle.loss_of(model, single)[0])
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        losses = lambda: oracle.loss_of(model, inputs)  # noqa: E731
        step = find_difference_step(losses, parameters, direction)
        got = directional_derivatives(losses, parameters, direction, step.size)
        vectors = {name: vector.unsqueeze(0) for name, vector in direction.items()}
        exact = GradientDots(model, parameters).products(losses, RowMap(model).of(inputs), vectors).dots[:, 0]
    error = float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error <= bar
    assert step.relative_error <= bar
    assert error <= 5 * step.relative_error + 1e-9
    assert all(torch.equal(before[name], parameter) for name, parameter in parameters.items())


def test_the_weights_come_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    parameters = dict(layer.named_parameters())
    before = layer.weight.detach().clone()

    def broken() -> torch.Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        directional_derivatives(broken, parameters, parameters, 1.0)
    assert torch.equal(layer.weight, before)


def test_what_cannot_work_is_refused() -> None:
    layer = nn.Linear(2, 2)
    parameters = dict(layer.named_parameters())
    x = torch.ones(3, 2)
    losses = lambda: layer(x).sum(1)  # noqa: E731
    zero = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with pytest.raises(InfluenceError, match="direction is zero"):
        find_difference_step(losses, parameters, zero)
    with pytest.raises(InfluenceError, match="has nothing for parameter bias"):
        find_difference_step(losses, parameters, {"weight": torch.ones(2, 2)})
    with pytest.raises(InfluenceError, match="gives finite losses"):
        find_difference_step(lambda: losses() * torch.nan, parameters, dict(parameters))
    half = nn.Linear(2, 2, dtype=torch.bfloat16)
    named = dict(half.named_parameters())
    with pytest.raises(InfluenceError, match="lost in its rounding"):
        directional_derivatives(losses, named, named, 1.0)
