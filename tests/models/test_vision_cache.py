"""Stored vision features give what computed ones give, are never another image's or tower's, and stay bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from torch import Tensor, nn

from ostlight.config.schema import Evaluation, Model
from ostlight.data.remote_cache import cache_folder
from ostlight.evaluation.generate import generate_answers
from ostlight.influence import UtilityScorer
from ostlight.models.batch import Batch
from ostlight.models.flops import FlopCounter
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.models.module import MultimodalModel
from ostlight.models.parts import PROJECTORS, freeze
from ostlight.models.vision import cache as vision_cache
from ostlight.models.vision import frozen_tower
from ostlight.models.vision.cache import opened
from ostlight.models.vision.feature_files import FeatureFiles

FAMILIES = [
    "llava_next",
    "qwen3_vl",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("llava", "llava_onevision", "idefics3", "smolvlm", "qwen2_5_vl", "internvl", "gemma3")
    ),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the features; the tiny towers here are treated as large ones."""
    monkeypatch.setenv("OSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frozen_tower, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(frozen_tower, "worth_reading", lambda reading, computing: True)
    cache_folder.cache_clear()
    yield tmp_path / "cache" / "vision"
    cache_folder.cache_clear()


def load(name: str, tmp_path: Path) -> MultimodalModel:
    folder = tmp_path / name
    return MultimodalModel.load(Model(path=str(folder if folder.exists() else tiny_families.save(name, folder))), "x")


def frozen(name: str, tmp_path: Path) -> tuple[MultimodalModel, Batch]:
    """A model whose tower is frozen and whose projector is trained, and a batch."""
    model = load(name, tmp_path)
    freeze(model.model, ["vision"])
    (batch,) = model.batches(tiny_families.samples(name), 100_000)
    return model, batch


def tower_of(model: MultimodalModel) -> nn.Module:
    core: Any = model.model.model
    return next(child for name, child in core.named_children() if "vision" in name or "visual" in name)


def passes(model: MultimodalModel) -> list[int]:
    """Gets the number of images (or patches) of each pass through the tower's first block."""
    seen: list[int] = []
    first = next(module for name, module in tower_of(model).named_modules() if "attn" in name or "attention" in name)
    first.register_forward_pre_hook(
        lambda _, inputs, options: seen.append(len([*inputs, *options.values()][0])), with_kwargs=True
    )
    return seen


def losses_and_gradients(model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    losses = model.losses(batch)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.trained.items() if p.grad is not None}
    return {"losses": losses.detach(), **gradients}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_computed_features(name, tmp_path):
    model, batch = frozen(name, tmp_path)
    plain, seen = losses_and_gradients(model, batch), passes(model)
    with opened(1, "first"):
        first = losses_and_gradients(model, batch)
    computed = len(seen)
    other = load(name, tmp_path)
    freeze(other.model, ["vision"])
    seen_by_other = passes(other)
    with opened(1, "second"):
        other.losses(batch)  # proves the features, as each process does
        proved = len(seen_by_other)
        stored = losses_and_gradients(other, batch)
        again = [other.losses(one).detach() for one in batch.singles()]
    assert computed > 0
    assert len(seen_by_other) == proved
    assert_close(first, plain)
    assert_close(stored, plain)
    assert torch.allclose(torch.cat(again), plain["losses"], rtol=1e-4)


def test_scores_are_those_of_computed_features(tmp_path):
    def scored(estimator: str) -> Tensor:
        model, batch = frozen("llava_next", tmp_path)
        anchors = make_anchors(model, tiny_families.samples("llava_next")[:2], ["", ""], 100_000)
        options = {"calibration": [batch]} if estimator == "finite_difference" else {}
        scorer = UtilityScorer(
            model.model, anchors, estimator=estimator, step_size=1e-2, parameters="blocks", loss=SampleTask(), **options
        )
        return scorer(batch).utility

    for estimator in ("first_order", "finite_difference"):
        plain = scored(estimator)
        with opened(1, "score"):
            first, second = scored(estimator), scored(estimator)
        for found in (first, second):
            assert torch.allclose(found, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max()))


def test_answers_are_those_of_computed_features(tmp_path):
    model, _ = frozen("llava_next", tmp_path)
    samples, settings = tiny_families.samples("llava_next"), Evaluation(max_new_tokens=4)
    plain = generate_answers(model, samples, settings)
    with opened(1, "evaluate"):
        generate_answers(model, samples, settings)
        seen = passes(model)
        assert generate_answers(model, samples, settings) == plain
    assert not seen


@pytest.mark.parametrize("change", ["weights", "pixels", "trainable", "dropout", "precision"])
def test_features_that_do_not_hold_are_computed(change, tmp_path):
    model, batch = frozen("llava_next", tmp_path)
    with opened(1, "before"):
        model.losses(batch)
    tower = tower_of(model)
    if change == "weights":
        with torch.no_grad():
            max(tower.parameters(), key=lambda p: p.numel()).mul_(1.5)
    if change == "pixels":  # as another augmentation of the same samples
        batch.inputs["pixel_values"] = batch.inputs["pixel_values"].flip(-1)
    if change == "trainable":
        next(tower.parameters()).requires_grad_(True)
    if change == "dropout":
        tower.train()
    if change == "precision":
        model.double()
    plain, seen = model.losses(batch).detach(), passes(model)
    model.losses(batch)
    images = seen.pop()
    with opened(1, "after"):
        found = model.losses(batch).detach()
    assert max(seen) == images
    assert torch.allclose(found, plain, rtol=1e-4)


def test_a_damaged_file_is_computed_again(folder, tmp_path, logged):
    model, batch = frozen("llava_next", tmp_path)
    plain = model.losses(batch).detach()
    with opened(1, "before"):
        model.losses(batch)
    (file, *_) = sorted(folder.glob("*/*"))
    whole = file.read_bytes()
    for damaged in (whole[:-8] + b"damaged!", whole[:100], b""):
        file.write_bytes(damaged)
        logged()
        with opened(1, "after"):
            assert torch.allclose(model.losses(batch).detach(), plain, rtol=1e-4)
        assert file.name in logged()
        assert file.stat().st_size == len(whole)


def test_what_does_not_fit_is_computed_each_time(folder, tmp_path, logged):
    model, batch = frozen("llava_next", tmp_path)
    plain, limit = model.losses(batch).detach(), 6_000
    for _ in range(2):
        with opened(limit / 2**30, "train"):
            assert torch.allclose(model.losses(batch).detach(), plain, rtol=1e-4)
    files = list(folder.glob("*/*"))
    assert files
    assert sum(file.stat().st_size for file in files) <= limit
    assert "did not fit (compute.vision_cache_gib)" in logged()


def test_files_unread_for_a_day_make_way(tmp_path):
    files = FeatureFiles(tmp_path, 20_000)
    keys = [f"{k:02}" for k in range(20)]
    stored = [key for key in keys if files.put(key, [torch.zeros(300)])]
    assert 0 < len(stored) < len(keys)
    for key in stored[:4]:
        os.utime(tmp_path / key / f"{key}.safetensors", (0, 0))
    assert FeatureFiles(tmp_path, 20_000).put("99", [torch.ones(300)])
    assert files.get(stored[0]) is None
    assert all(files.get(key) is not None for key in stored[4:])


def test_without_a_limit_nothing_is_stored(folder, tmp_path):
    model, batch = frozen("llava_next", tmp_path)
    with opened(0, "train"):
        model.losses(batch)
    assert not folder.exists()


def test_a_small_tower_and_a_slow_disk_are_no_use(folder, tmp_path, monkeypatch, logged):
    model, batch = frozen("llava_next", tmp_path)
    monkeypatch.setattr(frozen_tower, "MIN_PARAMETERS", 5_000_000)
    with opened(1, "train"):
        model.losses(batch)
    assert not folder.exists()
    monkeypatch.setattr(frozen_tower, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(frozen_tower, "worth_reading", lambda reading, computing: False)
    with opened(1, "train"):
        for _ in range(2):
            model.losses(batch)
    assert logged().count("vision features are computed each time") == 1


def test_a_tower_that_mixes_images_is_refused(tmp_path, logged):
    model, batch = frozen("llava_next", tmp_path)
    tower: Any = tower_of(model)
    layer = next(module for module in tower.modules() if isinstance(module, nn.LayerNorm))
    layer.register_forward_hook(lambda _, __, out: out + out.mean(0, keepdim=True))
    plain = model.losses(batch).detach()
    with opened(1, "train"):
        found = [model.losses(batch).detach() for _ in range(2)]
    assert all(torch.equal(one, plain) for one in found)
    assert logged().count("other features among others than alone") == 1


def test_operations_of_the_tower_are_counted_where_it_runs(tmp_path):
    model, batch = frozen("llava_next", tmp_path)
    tiles = len(batch.inputs["pixel_values"].flatten(0, 1).flatten(1).unique(dim=0))

    def flops() -> tuple[int, int]:
        with FlopCounter() as counter:
            model.losses(batch)
        return counter.total, vision_cache.take_flops()

    (plain, _), seen = flops(), passes(model)
    model.losses(batch)
    with opened(1, "train"):
        first, second = flops(), flops()
    assert second == (first[0], 0)
    of_tile = (plain - first[0]) // seen[0]
    assert plain - first[0] == of_tile * seen[0]
    assert of_tile * (tiles - 1) <= first[1] <= of_tile * tiles  # one may be the padding of a smaller image


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
def test_a_trained_projector_gets_its_gradient_under_autocast(name, tmp_path):
    model, batch = frozen(name, tmp_path)
    found = []
    for gib in (0, 1, 1):  # computed as before, computed and stored, stored
        with opened(gib, "train"), torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, batch))
    assert any(any(known in one for known in PROJECTORS) for one in found[0])
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            assert (other[key] - value).norm() <= 0.05 * value.norm() + 1e-4, key


@pytest.mark.parametrize("name", ["mllama", "mistral3"])
def test_a_model_whose_images_do_not_divide_computes_and_says_so(name, folder, tmp_path, logged):
    if tiny_families.FAMILIES[name].needs is not None:
        pytest.importorskip(tiny_families.FAMILIES[name].needs)
    model, batch = frozen(name, tmp_path)
    plain = model.losses(batch).detach()
    logged()
    with opened(1, "train"):
        found = [model.losses(batch).detach() for _ in range(2)]
    assert all(torch.equal(one, plain) for one in found)
    assert logged().count("vision features are computed each time") == 1
    assert not list(folder.glob("*/*"))


def test_threads_that_write_and_read_the_same_files_find_whole_ones(tmp_path, logged):
    keys = [f"{k:02}" for k in range(4)]

    def work(seed: int) -> bool:
        files = FeatureFiles(tmp_path, 1e9)
        for k in range(24):
            key = keys[(k + seed) % len(keys)]
            files.put(key, [torch.full((3000,), float(key))])
            found = files.get(key)
            if found is None or not torch.equal(found[0], torch.full((3000,), float(key))):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert not logged()
