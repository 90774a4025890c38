"""Every family through its real classes against a float64 loop over single samples."""

from __future__ import annotations

from collections.abc import Callable

import families
import oracle
import peft
import pytest
import torch
from torch import nn

from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters

Tiny = Callable[..., nn.Module]
SCOPES = ["blocks", "last:1", "head", "all", r"norm|bias|down_proj"]


def agrees_with_the_loop(family: str, model: nn.Module, scope: str) -> None:
    parameters = select_parameters(model, scope)
    vectors = oracle.random_vectors(parameters, 3)
    inputs = families.batch(family)
    with families.DoublePrecision():
        singles = [
            oracle.gradient(parameters, lambda k=k: oracle.loss_of(model, families.alone(family, inputs, k))[0])
            for k in range(3)
        ]
        engine, rows = GradientDots(model, parameters), RowMap(model).of(inputs)
        got = engine.products(lambda: oracle.loss_of(model, inputs), rows, vectors, squared_norms=True, separate=True)
        together = engine.products(lambda: oracle.loss_of(model, inputs), rows, vectors, squared_norms=True)
    assert oracle.relative_error(together.dots, got.dots) <= 1e-9
    assert oracle.relative_error(together.squared_norms, got.squared_norms) <= 1e-9
    expected = torch.stack([oracle.dots(single, vectors) for single in singles])
    norms = torch.stack([oracle.squared_norm(single) for single in singles])
    assert oracle.relative_error(got.dots, expected) <= 1e-9
    assert oracle.relative_error(got.squared_norms, norms) <= 1e-9
    for name in parameters:
        one = torch.stack([oracle.dots({name: single[name]}, vectors) for single in singles])
        found = got.by_parameter.get(name, torch.zeros_like(one))
        assert (found - one).abs().max() <= 1e-9 * norms.max().sqrt() * vectors[name].norm(), name


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", families.FAMILIES | families.WITHOUT_PROCESSOR)
def test_engine_agrees_with_the_loop(tiny: Tiny, family: str, scope: str) -> None:
    agrees_with_the_loop(family, tiny(family), scope)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", families.FAMILIES | families.WITHOUT_PROCESSOR)
def test_adapters_agree_with_the_loop(tiny: Tiny, family: str) -> None:
    torch.manual_seed(0)
    base = tiny(family)
    linear = [name for name, part in base.named_modules() if isinstance(part, nn.Linear) and "head" not in name]
    config = peft.LoraConfig(target_modules=linear, r=2, init_lora_weights=False)
    model = peft.get_peft_model(base, config).double().eval()
    agrees_with_the_loop(family, model, "lora")
