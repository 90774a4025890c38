"""Checkpointed blocks keep less for the backward pass, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import save
from torch import nn

from ostlight.config.schema import Lora, Target, Training
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ConfigError
from ostlight.models.load import load_model
from ostlight.models.module import MultimodalModel
from ostlight.models.parts import part_of_parameters
from ostlight.models.tuning import prepared


def bytes_kept(work: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return sum(kept), result


def test_checkpointed_blocks_keep_less_and_give_the_same_gradients(samples):
    found: list[Any] = []
    for checkpointed in (False, True):
        settings = Target(path=str(checkpoint("target")), gradient_checkpointing=checkpointed)
        model = MultimodalModel.load(settings, "target")
        batch = model.batches(samples("pool")[:6], 10_000)[0]
        size, loss = bytes_kept(lambda model=model, batch=batch: model.losses(batch).sum())
        loss.backward()
        found.append((size, [p.grad for p in model.parameters()]))
    assert found[1][0] < 0.5 * found[0][0]
    pairs = zip(found[0][1], found[1][1], strict=True)
    assert all(one is other is None or torch.equal(one, other) for one, other in pairs)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="gradient_checkpointing: Linear has no block that can be checkpointed"):
        prepared(nn.Linear(2, 2), Target(gradient_checkpointing=True))


def test_adapters_begin_the_same_each_time():
    def adapters() -> list[torch.Tensor]:
        model = MultimodalModel.load(Target(path=str(checkpoint("target")), lora=Lora(rank=2)), "target")
        return list(model.trained.values())

    one, other = adapters(), adapters()
    assert len(one) > 2
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3", "internvl", "mllama"])
def test_every_parameter_belongs_to_the_part_that_its_module_says(family: str, tmp_path):
    model = load_model(Target(path=str(save(family, tmp_path))), "target")
    part_of = part_of_parameters(model)
    assert set(part_of.values()) == {"vision", "projector", "language"}
    assert {part_of[name] for name in part_of if "language_model" in name or "lm_head" in name} == {"language"}
    seeing = ("vision_tower", "vision_model", "visual.blocks", "visual.patch_embed")
    assert {part_of[name] for name in part_of if any(f"{one}." in name for one in seeing)} == {"vision"}


def trained_parts(model: MultimodalModel) -> list[str]:
    part_of = part_of_parameters(model.model)
    return [part_of[name.removeprefix("model.")] for name in model.trained]


def test_frozen_parts_stay_as_they_are_and_the_others_are_trained():
    settings = Target(path=str(checkpoint("target")), freeze=["vision", "projector"])
    model = MultimodalModel.load(settings, "target")
    parts = list(part_of_parameters(model.model).values())
    assert trained_parts(model) == ["language"] * parts.count("language")
    assert set(parts) == {"vision", "projector", "language"}


def test_adapters_of_frozen_parts_are_not_trained():
    settings = Target(path=str(checkpoint("target")), freeze=["vision"], lora=Lora(rank=2))
    model = MultimodalModel.load(settings, "target")
    assert set(trained_parts(model)) == {"projector", "language"}
    assert all("lora" in name for name in model.trained)


def test_a_part_that_is_not_there_and_a_model_without_anything_to_train_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no part vision; it has language"):
        MultimodalModel.load(Target(path=str(save("llama", tmp_path)), freeze=["vision"]), "target")
    everything = Target(path=str(checkpoint("target")), freeze=["vision", "projector", "language"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        MultimodalModel.load(everything, "target")


def test_the_attention_is_the_one_that_is_named_and_gives_the_same_losses(samples):
    losses = {}
    for attention in ("eager", "sdpa"):
        model = MultimodalModel.load(Target(path=str(checkpoint("target")), attention=attention), "target")
        assert model.model.get_decoder().config._attn_implementation == attention
        with torch.no_grad():
            losses[attention] = model.losses(model.batches(samples("pool")[:6], 10_000)[0])
    assert torch.allclose(losses["eager"], losses["sdpa"], rtol=1e-4)


def test_a_part_has_the_learning_rate_that_it_is_given():
    training = Training(lr=1e-3, lr_vision=1e-5)
    model = MultimodalModel.load(Target(path=str(checkpoint("target"))), "target", training)
    model.total_steps = 10
    optimizer = model.configure_optimizers()["optimizer"]
    rate_of = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    part_of = part_of_parameters(model.model)
    assert {
        part: {rate_of[id(p)] for name, p in model.model.named_parameters() if part_of[name] == part}
        for part in ("vision", "projector", "language")
    } == {"vision": {1e-5}, "projector": {1e-3}, "language": {1e-3}}
    model.training_settings = Training(lr=1e-3)
    (group,) = model.configure_optimizers()["optimizer"].param_groups
    assert len(group["params"]) == len(model.trained)


def test_a_learning_rate_of_a_frozen_part_is_refused():
    settings = Target(path=str(checkpoint("target")), freeze=["vision"])
    model = MultimodalModel.load(settings, "target", Training(lr_vision=1e-5))
    with pytest.raises(ConfigError, match="lr_vision: nothing of the vision is trained"):
        model.configure_optimizers()
