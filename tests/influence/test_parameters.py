from __future__ import annotations

from collections.abc import Callable

import families
import peft
import pytest
from torch import nn

from ostlight.errors import InfluenceError
from ostlight.influence.parameters import select_parameters

Tiny = Callable[..., nn.Module]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_blocks_are_the_text_models_and_all_of_them(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    decoder = model.get_decoder()
    expected = {id(p) for layer in decoder.layers for p in layer.parameters()}
    found = select_parameters(model, "blocks")
    assert {id(p) for p in found.values()} == expected
    assert all(dict(model.named_parameters())[name] is p for name, p in found.items())
    last = select_parameters(model, "last:1")
    assert {id(p) for p in last.values()} == {id(p) for p in decoder.layers[-1].parameters()}
    assert list(select_parameters(model, "all")) == [name for name, _ in model.named_parameters()]
    assert not any("vision" in name or "visual" in name for name in found)


def test_head_is_the_output_embedding_and_tied_it_is_one_parameter(tiny: Tiny) -> None:
    assert list(select_parameters(tiny("llama"), "head")) == ["lm_head.weight"]
    assert list(select_parameters(tiny("llama", tied=True), "head")) == ["model.embed_tokens.weight"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_takes_the_adapters_alone(tiny: Tiny) -> None:
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    found = select_parameters(model, "lora")
    assert len(found) == 2 * 2 * 2
    assert all("lora_A" in name or "lora_B" in name for name in found)
    assert len(select_parameters(model, "blocks")) == 18 + 8


def test_a_regular_expression_searches_the_names(tiny: Tiny) -> None:
    found = select_parameters(tiny("llama"), r"layers\.1\..*norm")
    assert sorted(name.rsplit(".", 2)[1] for name in found) == ["input_layernorm", "post_attention_layernorm"]


@pytest.mark.parametrize("scope", ["lora", "nothing_like_it", "last:3", "last:0", "last:x", "layers.(", "head"])
def test_a_scope_that_finds_nothing_says_what_there_is(tiny: Tiny, scope: str) -> None:
    model = tiny("llama").model if scope == "head" else tiny("llama")
    with pytest.raises(InfluenceError) as caught:
        select_parameters(model, scope)
    assert scope in str(caught.value)
    if scope in ("lora", "nothing_like_it"):
        assert "model.layers.*.self_attn.q_proj.weight (x2)" in str(caught.value)


def test_the_nearest_names_are_listed_first(tiny: Tiny) -> None:
    for scope, nearest in (
        ("gate_porj", "model.layers.*.mlp.gate_proj.weight"),
        ("embed_token$", "model.embed_tokens"),
    ):
        with pytest.raises(InfluenceError, match=rf"nearest names first, are {nearest}".replace("*", r"\*")):
            select_parameters(tiny("llama"), scope)


def test_a_plain_module_is_searched_for_its_list_of_blocks() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_blocks = nn.ModuleList([nn.Linear(2, 2)] * 3)
            self.body = nn.Module()
            self.body.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    assert list(select_parameters(Plain(), "last:1")) == ["body.blocks.1.weight", "body.blocks.1.bias"]
    with pytest.raises(InfluenceError, match="no list of transformer blocks"):
        select_parameters(nn.Linear(2, 2), "blocks")
