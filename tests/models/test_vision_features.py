"""The anchors' vision features are computed once while the vision tower is frozen, and never stand for others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from torch import nn

from ostlight.config.schema import Model
from ostlight.influence import UtilityScorer
from ostlight.influence.anchors import Anchors
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import train_only
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.models.module import MultimodalModel
from ostlight.models.vision import features as vision_features

FAMILIES = [
    "llava_next",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3")),
]


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MultimodalModel, Anchors]:
    settings = Model(path=str(tiny_families.save(request.param, tmp_path)))
    model, samples = MultimodalModel.load(settings, "proxy"), tiny_families.samples(request.param)
    return model, make_anchors(model, samples, [""] * len(samples), 100_000)


@pytest.fixture
def passes(made: tuple[MultimodalModel, Anchors]) -> list[int]:
    """Grows by one whenever something sees images."""
    core: Any = made[0].model.model
    seen: list[int] = []
    tower = next(child for name, child in core.named_children() if "vision" in name or "visual" in name)
    tower.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    vision_features._HELD.clear()
    yield
    vision_features._HELD.clear()


def test_a_frozen_tower_sees_each_batch_once(made, passes):
    model, anchors = made
    whole = anchors.losses(model.model)
    first = len(passes)
    assert first >= 1
    train_only(model.model, select_parameters(model.model, "blocks"))
    passes.clear()
    found = [anchors.losses(model.model) for _ in range(3)]
    gradients = [sum(logits.sum() for _, logits, _ in anchors.runs(model.model)).backward() for _ in range(2)]
    assert len(gradients) == 2
    assert len(passes) == first
    assert all(torch.equal(one, whole) for one in found)


def test_utilities_are_the_same_bit_for_bit(made, passes, monkeypatch):
    model, anchors = made
    (batch,) = model.batches([sample for one in anchors.batches for sample in one.samples], 100_000)

    def scored() -> torch.Tensor:
        scorer = UtilityScorer(
            model.model, anchors.batches, loss=SampleTask(), estimator="exact", step_size=1e-2, parameters="blocks"
        )
        return scorer(batch).utility

    reused, with_cache = scored(), len(passes)
    passes.clear()
    monkeypatch.setattr(vision_features, "MOST_BYTES", 0)
    for one in anchors.batches:
        one.features = vision_features.VisionFeatures()
    assert torch.equal(scored(), reused)
    assert with_cache < len(passes)


@pytest.mark.parametrize("change", ["weights", "trainable", "inputs", "no_room", "replaced"])
def test_features_that_do_not_hold_are_computed_again(made, passes, monkeypatch, change):
    model, anchors = made
    train_only(model.model, select_parameters(model.model, "blocks"))
    if change == "no_room":
        monkeypatch.setattr(vision_features, "MOST_BYTES", 100)
    before = anchors.losses(model.model)
    once = len(passes)
    core: Any = model.model.model
    tower: nn.Module = next(child for name, child in core.named_children() if "vision" in name or "visual" in name)
    weight = max(tower.parameters(), key=lambda p: p.numel())
    if change == "weights":
        with torch.no_grad():
            weight.mul_(1.5)
    if change == "trainable":
        weight.requires_grad_(True)
    if change == "inputs":
        for batch in anchors.batches:
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"] * 0.5
    if change == "replaced":
        owner = next(module for module in tower.modules() if any(p is weight for p in module._parameters.values()))
        name = next(name for name, p in owner._parameters.items() if p is weight)
        owner._parameters[name] = (weight * 1.5).detach().requires_grad_(True)
    after = anchors.losses(model.model)
    assert len(passes) == 2 * once
    assert torch.equal(before, after) == (change in ("trainable", "no_room"))


def test_a_batch_elsewhere_or_with_other_rows_has_features_of_its_own(made):
    (batch, *_) = made[1].batches
    assert batch.features is not None
    assert batch.to("cpu").features is None
    assert batch.rows([0]).features is None
