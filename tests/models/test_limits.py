"""Tokens and positions that a model has no place for are found before its forward pass, with the sample's name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from ostlight.config.schema import Model
from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord
from ostlight.models.encoding.limits import Limits, limits_of
from ostlight.models.module import MultimodalModel

sys.path.insert(0, str(Path(__file__).parent))

import chat_templates as templates
import tiny_families

POSITIONS = 48
VOCABULARY = 400
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2(vocabulary: int = VOCABULARY) -> PreTrainedConfig:
    return GPT2Config(vocab_size=vocabulary, n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2, **SPECIAL)


WITH_TABLE: list[PreTrainedConfig] = [
    gpt2(),
    OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, ffn_dim=16,
        num_attention_heads=2, max_position_embeddings=POSITIONS, **SPECIAL,
    ),
    GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=1, attention_types=[[["global"], 1]], num_heads=2,
        max_position_embeddings=POSITIONS, **SPECIAL,
    ),
    GPTJConfig(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, **SPECIAL
    ),
    BioGptConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=POSITIONS, **SPECIAL,
    ),
]  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=POSITIONS,
    **SPECIAL,
)


@pytest.mark.parametrize("config", WITH_TABLE, ids=lambda config: config.model_type)
def test_the_limit_is_the_longest_text_the_model_takes(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    assert limits_of(model) == Limits(VOCABULARY, POSITIONS)
    with torch.no_grad():
        model(input_ids=torch.full((1, POSITIONS), VOCABULARY - 1))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.ones(1, POSITIONS + 1, dtype=torch.long))


def test_a_model_that_computes_positions_takes_any_length() -> None:
    model = AutoModelForCausalLM.from_config(LLAMA).eval()
    assert limits_of(model) == Limits(VOCABULARY, None)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3 * POSITIONS, dtype=torch.long))


def sample(question: str, answer: str = "no") -> Sample:
    return Sample("s", (Turn("user", question), Turn("assistant", answer, True)))


def load(config: PreTrainedConfig, folder: Path, max_length: int = 1000) -> MultimodalModel:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    templates.byte_tokenizer(templates.CHATML).save_pretrained(folder)
    return MultimodalModel.load(Model(path=str(folder), max_length=max_length), "proxy")


def test_a_sample_longer_than_the_table_of_positions_is_rejected(tmp_path: Path) -> None:
    model = load(gpt2(), tmp_path)
    (batch,) = model.batches([sample("short")], 1000)
    assert model.losses(batch).isfinite().all()
    for encode in (model.encoder.encode, model.encoder.encode_prompt):
        with pytest.raises(BadRecord) as caught:
            encode(sample("tell a long story " * 8))
        assert (caught.value.reason, caught.value.field) == ("too_long", "turns")
        assert str(POSITIONS) in caught.value.detail


def test_a_sample_that_the_length_limit_cuts_to_fit_is_kept(tmp_path: Path) -> None:
    model = load(gpt2(), tmp_path, max_length=POSITIONS)
    encoded = model.encoder.encode(sample("short", "a long answer " * 8))
    assert encoded.answer_cut
    (batch,) = model.batches([sample("short", "a long answer " * 8)], 1000)
    assert model.losses(batch).isfinite().all()


def test_a_token_beyond_the_embeddings_is_rejected_by_name(tmp_path: Path) -> None:
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    rows = tokenizer.convert_tokens_to_ids("</think>")
    model = load(gpt2(rows), tmp_path)
    model.encoder.encode(sample("short"))
    with pytest.raises(BadRecord) as caught:
        model.encoder.encode(sample("what is </think>?"))
    assert (caught.value.reason, caught.value.field) == ("unknown_token", "turns")
    assert "</think>" in caught.value.detail


def test_an_image_of_a_size_that_the_model_does_not_take_is_rejected(tmp_path: Path) -> None:
    folder = tiny_families.save("llava", tmp_path / "model")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] |= {"do_resize": False, "do_center_crop": False}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    encoder = MultimodalModel.load(Model(path=str(folder)), "proxy").encoder
    turns = (Turn("user", "<image> what"), Turn("assistant", "one", True))
    encoder.encode(Sample("s", turns, (tiny_families.picture(0, 8, 8),)))
    with pytest.raises(BadRecord) as caught:
        encoder.encode(Sample("s", turns, (tiny_families.picture(0, 16, 8),)))
    assert (caught.value.reason, caught.value.field) == ("image_size", "images")
    assert "16 x 8" in caught.value.detail
