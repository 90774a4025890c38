"""What is saved is what was trained: tied weights, frequencies, the whole model after a training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ostlight.config.schema import Lora, Model, Target
from ostlight.data.sample import Sample, Turn
from ostlight.models.adapters import merged, quiet_peft
from ostlight.models.module import MultimodalModel

sys.path.insert(0, str(Path(__file__).parent))

import chat_templates as templates
import folders

IDS = torch.arange(3, 20)[None]


def tied(vocabulary: int = 400) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shaken(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize(
    "adapted",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_adapters_on_tied_weights_are_saved_as_they_were_trained(adapted: dict[str, Any], tmp_path: Path) -> None:
    with quiet_peft():
        model = shaken(get_peft_model(tied(), LoraConfig(r=2, **adapted)).eval())
    trained = logits(model)
    whole = merged(model)
    torch.testing.assert_close(logits(whole), trained, atol=1e-4, rtol=1e-4)
    whole.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), trained, atol=1e-4, rtol=1e-4)
    assert again.config.tie_word_embeddings == (adapted == {"target_modules": ["q_proj"]})


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl"])
def test_a_target_with_adapters_on_its_head_is_saved_as_it_was_trained(family: str, samples, tmp_path: Path) -> None:
    folder = folders.save(family, tmp_path / "base")
    base: Any = MultimodalModel.load(Model(path=str(folder)), "target").model
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(folder)
    lora = Lora(rank=2, modules=r".*(lm_head|embed_tokens|q_proj)")
    target = MultimodalModel.load(Target(path=str(folder), lora=lora), "target")
    assert target.model.get_base_model().lm_head.base_layer.weight is not None  # type: ignore[operator, union-attr]
    shaken(target.model)
    sample = Sample("s", (Turn("user", "one and two?"), Turn("assistant", "three", True)))
    (batch,) = target.batches([sample], 1000)
    with torch.no_grad():
        trained = target.losses(batch)
    target.save(tmp_path / "saved")
    again = MultimodalModel.load(Model(path=str(tmp_path / "saved")), "target")
    with torch.no_grad():
        torch.testing.assert_close(again.losses(batch), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_changes_weights_and_no_frequencies(dtype: torch.dtype, tmp_path: Path) -> None:
    tied().save_pretrained(tmp_path)
    templates.byte_tokenizer(templates.CHATML).save_pretrained(tmp_path)
    model = MultimodalModel.load(Model(path=str(tmp_path)), "proxy")
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert before
    model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for name, buffer in model.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])
    loaded = MultimodalModel.load(Model(path=str(tmp_path), dtype=str(dtype).removeprefix("torch.")), "proxy")
    assert torch.equal(logits(model.model), logits(loaded.model))
