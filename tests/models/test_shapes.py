"""Passes counted without weights are those of the model with its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_families
import torch
from tiny_families import FAMILIES
from torch.nn.attention import SDPBackend, sdpa_kernel

from ostlight.config.schema import Lora, Model, Target
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ModelError
from ostlight.models.module import MultimodalModel
from ostlight.models.shapes import PassCost, count_pass, shapes_of, trained_bytes, weight_bytes


def cost(model: MultimodalModel, work: Callable[[MultimodalModel], object]) -> PassCost:
    with sdpa_kernel(SDPBackend.MATH):  # as on the meta device; fused attention computes its products twice
        return count_pass(lambda: work(model), model)


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:.*paligemma")

QUICK = ("internvl", "qwen3_vl_moe")


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_every_family_costs_what_it_costs_with_weights(family: str, tmp_path: Path):
    needs = FAMILIES[family].needs
    if needs and not importlib.util.find_spec(needs):
        pytest.skip(f"{needs} is missing")
    settings = Model(path=str(tiny_families.save(family, tmp_path)))
    real = MultimodalModel.load(settings, "proxy")
    shapes = shapes_of(settings, "proxy", real.encoder)
    assert shapes.collator == real.collator
    assert weight_bytes(shapes) == weight_bytes(real)
    (batch,) = real.batches(tiny_families.samples(family), 100_000)

    def forward(model: MultimodalModel) -> None:
        with torch.no_grad():
            model.losses(batch)

    def training(model: MultimodalModel) -> None:
        model.losses(batch).mean().backward()

    for work in (forward, training):
        expected, found = cost(real, work), cost(shapes, work)
        assert found.flops == expected.flops > 0
        assert found.activations == pytest.approx(expected.activations, rel=0.001)
    assert found.activations > 0
    assert all(p.is_meta for p in shapes.parameters())


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=4)}, {"gradient_checkpointing": True}])
def test_a_target_is_prepared_as_it_is_trained(settings, samples):
    target = Target(path=str(checkpoint("target")), **settings)
    real = MultimodalModel.load(target, "target", target.training)
    shapes = shapes_of(target, "target", real.encoder)
    batches = real.batches(samples("pool")[:6], 4096)

    def step(model: MultimodalModel) -> None:
        for batch in batches:
            model.losses(batch).mean().backward()

    assert trained_bytes(shapes) == trained_bytes(real)
    assert cost(shapes, step) == cost(real, step)


def test_work_that_needs_values_is_refused(proxy, samples):
    real = proxy("float32")
    shapes = shapes_of(Model(path=str(checkpoint("proxy"))), "proxy", real.encoder)
    (batch,) = real.batches(samples("pool")[:2], 4096)
    with pytest.raises(ModelError):
        count_pass(lambda: float(shapes.losses(batch).sum()), shapes)


def test_half_precision_halves_weights(proxy):
    encoder = proxy("float32").encoder
    full, half = (
        shapes_of(Model(path=str(checkpoint("proxy")), dtype=dtype), "proxy", encoder)
        for dtype in ("float32", "bfloat16")
    )
    assert trained_bytes(full) == 2 * trained_bytes(half)
