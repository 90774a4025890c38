"""A folder that peft saved is a model: its adapters on the base model it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoTokenizer

import ostlight
from ostlight.config.schema import Lora, Model, Target
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ModelError, OstlightError
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import dot, sample_gradient
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.adapters import quiet_peft
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.selection.scores import Scores

pytestmark = pytest.mark.usefixtures("few_samples_compared")

ADAPTED = r".*language_model.*(q_proj|down_proj)"


@pytest.fixture
def adapters(proxy: Callable[..., MultimodalModel], tmp_path: Path) -> Path:
    """Adapters on the committed proxy, as peft saves them: neither ``config.json`` nor processor beside them."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=ADAPTED, r=2, init_lora_weights=False)
    with quiet_peft():
        peft.get_peft_model(proxy("float32").model, config).save_pretrained(tmp_path / "adapters")
    assert sorted(p.suffix for p in (tmp_path / "adapters").iterdir()) == [".json", ".md", ".safetensors"]
    return tmp_path / "adapters"


def test_adapters_stay_apart_and_are_all_that_is_trained(adapters: Path) -> None:
    model = MultimodalModel.load(Model(path=str(adapters), dtype="bfloat16"), "proxy")
    found = select_parameters(model.model, "lora")
    assert len(found) == 2 * 2 * 2
    assert set(model.trained) == {f"model.{name}" for name in found}
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert not model.model.training
    assert model.collator == MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy").collator


def test_scores_agree_with_a_float64_loop_over_single_samples(adapters: Path, samples) -> None:
    model = MultimodalModel.load(Model(path=str(adapters), dtype="float64"), "proxy")
    parameters = select_parameters(model.model, "lora")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 200)
    batch = model.batches(samples("pool")[:6], 10_000)[0]
    found = SecondOrder(SimulatedStep(model.model, parameters, anchors, 0.5)).columns(batch)

    def gradient(single):
        return sample_gradient(model.model, SampleTask(), parameters, single)[1]

    trusted = [gradient(s) for b in anchors.batches for s in b.singles()]
    mean = {name: torch.stack([one[name] for one in trusted]).mean(0) for name in parameters}
    slopes = [dot(gradient(single), mean) for single in batch.singles()]
    # The model's norm layers round to float32 whatever its dtype.
    assert torch.allclose(found["score"], 0.5 * torch.stack(slopes), rtol=1e-6)


def test_exact_tends_to_the_slope_as_eta_goes_to_zero(adapters: Path, samples) -> None:
    model = MultimodalModel.load(Model(path=str(adapters), dtype="float64"), "proxy")
    parameters = select_parameters(model.model, "lora")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 200)
    batch = model.batches(samples("pool")[:4], 10_000)[0]
    slopes = SecondOrder(SimulatedStep(model.model, parameters, anchors, 1.0)).columns(batch)["alignment"]
    off = []
    for eta in (1e-4, 1e-5):
        found = torch.tensor(
            Exact(SimulatedStep(model.model, parameters, anchors, eta)).columns(batch)["score"], dtype=torch.float64
        )
        off.append(float((found / eta - slopes).abs().max() / slopes.abs().median()))
    assert off[1] < 1e-2
    assert off[0] / off[1] == pytest.approx(10, rel=0.5)


@pytest.mark.parametrize("fraction", [0, pytest.param(0.25, marks=pytest.mark.slow)], ids=["as it came", "warmed up"])
def test_a_run_over_the_adapters_of_a_folder(settings, adapters: Path, fraction: float) -> None:
    warmup = {"fraction": fraction, "training": {"steps": 2, "batch_size": 4, "lr": 1e-3}}
    options = {"estimator": "second_order", "step": "sgd", "parameters": "lora", "probes": 4}
    config = settings(proxy={"path": str(adapters), "warmup": warmup}, selector={"name": "ost", "options": options})
    selection = ostlight.select(config)
    scores = Scores.read(selection.folder.scores)
    assert len(scores.column("score")) == 48
    assert len(selection.kept) == 10
    if not fraction:
        return
    warmed = MultimodalModel.load(Model(path=str(selection.folder.proxy)), "proxy")
    before = MultimodalModel.load(Model(path=str(adapters)), "proxy")
    names = set(select_parameters(warmed.model, "lora"))
    moved = {
        name
        for (name, p), q in zip(warmed.model.named_parameters(), before.model.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert moved == names


def test_a_plain_proxy_has_no_adapters_and_the_fix_is_named(settings) -> None:
    config = settings(selector={"name": "ost", "options": {"parameters": "lora", "step_size": 0.1}})
    with pytest.raises(OstlightError, match=r"proxy\.path"):
        ostlight.select(config)


def test_a_target_merges_them_and_trains_all_weights_or_new_adapters(adapters: Path, samples, tmp_path: Path) -> None:
    apart = MultimodalModel.load(Model(path=str(adapters)), "proxy")
    batch = apart.batches(samples("pool")[:4], 10_000)[0]
    for lora in (None, Lora(rank=2)):
        target = MultimodalModel.load(Target(path=str(adapters), lora=lora), "target")
        assert torch.allclose(target.losses(batch), apart.losses(batch), rtol=1e-4)
        trained = target.trained.values()
        assert sum(p.numel() for p in trained) < sum(p.numel() for p in apart.parameters())
        assert (len(trained) == len(list(target.parameters()))) == (lora is None)
    target.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").is_file()


def test_the_tokenizer_that_lies_with_adapters_does_not_hide_the_bases_processor(adapters: Path) -> None:
    AutoTokenizer.from_pretrained(checkpoint("proxy")).save_pretrained(adapters)
    model = MultimodalModel.load(Model(path=str(adapters)), "proxy")
    assert hasattr(model.encoder.processor, "image_processor")


def test_another_base_is_another_proxy(adapters: Path, tmp_path: Path) -> None:
    first = fingerprint.of_model(str(adapters), "proxy")
    assert first == fingerprint.of_model(str(adapters), "proxy") != fingerprint.of_folder(adapters)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    change(adapters, base_model_name_or_path=str(base))
    other = fingerprint.of_model(str(adapters), "proxy")
    (base / "config.json").write_text("{ }")
    assert len({first, other, fingerprint.of_model(str(adapters), "proxy")}) == 3


def change(adapters: Path, **entries: Any) -> None:
    file = adapters / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "/no/such/base"}, "/no/such/base"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    ],
)
def test_adapters_that_cannot_be_loaded_are_refused(adapters: Path, entries: dict[str, Any], named: str) -> None:
    change(adapters, **entries)
    with pytest.raises(ModelError, match=named) as caught:
        MultimodalModel.load(replace(Model(), path=str(adapters)), "proxy")
    assert caught.value.setting == "proxy.path"
