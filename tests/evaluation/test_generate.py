"""Generation stops where the trained answers end, and says where it did not."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ostlight.config.schema import Evaluation, Model
from ostlight.data.sample import Sample, Turn
from ostlight.evaluation.evaluate import Questions, evaluate_model
from ostlight.evaluation.generate import generate_answers
from ostlight.models.module import MultimodalModel

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import chat_templates as templates

ANSWERS = {"red?": "yes", "blue?": "no", "cats?": "3", "circle?": "a circle"}


def samples() -> list[Sample]:
    return [Sample(q, (Turn("user", q), Turn("assistant", a, True))) for q, a in ANSWERS.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives these answers, on a base whose generation settings name another end than the template."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = MultimodalModel.load(Model(path=str(folder)), "target")
    (batch,) = loaded.batches(samples(), 10_000)
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = loaded.losses(batch).mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    loaded.save(folder)
    return folder


def test_it_stops_at_the_end_of_turn_that_was_trained(trained: Path, logged) -> None:
    model = MultimodalModel.load(Model(path=str(trained)), "target")
    settings = Evaluation(max_new_tokens=24, batch_size=3)
    prompts = [model.encoder.encode_prompt(sample) for sample in samples()]
    result = evaluate_model(model, Questions(samples(), prompts), settings)
    assert result.accuracy["all"] == 1.0
    assert result.predictions["text"].to_pylist() == list(ANSWERS.values())
    assert not pc.any(result.predictions["at_limit"]).as_py()
    assert "limit" not in logged()


def test_answers_that_ran_into_the_limit_are_named(trained: Path, logged) -> None:
    model = MultimodalModel.load(Model(path=str(trained)), "target")
    settings = Evaluation(max_new_tokens=3)
    answers = generate_answers(model, samples(), settings)
    assert [answer.ended for answer in answers] == [True, True, True, False]
    prompts = [model.encoder.encode_prompt(sample) for sample in samples()]
    result = evaluate_model(model, Questions(samples(), prompts), settings)
    assert result.predictions["at_limit"].to_pylist() == [False, False, False, True]
    assert "1 of 4 answers" in logged()


def test_the_base_models_own_end_still_ends_an_answer(trained: Path) -> None:
    model = MultimodalModel.load(Model(path=str(trained)), "target")
    eos = model.encoder.tokenizer.eos_token_id

    def always(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.full((len(input_ids), 1), eos)], dim=1)

    model.model.generate = always  # type: ignore[assignment]
    answers = generate_answers(model, samples(), Evaluation(max_new_tokens=4))
    assert [(str(answer), answer.ended) for answer in answers] == [("", True)] * 4


def test_an_end_in_several_tokens_ends_an_answer(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}"
    tokenizer = templates.byte_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = MultimodalModel.load(Model(path=str(tmp_path)), "target")
    written = tokenizer("yes\n###\nuser: and")["input_ids"]

    def written_on(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        assert options["stop_strings"] == ["###"]
        return torch.cat([input_ids, torch.tensor([written] * len(input_ids))], dim=1)

    model.model.generate = written_on  # type: ignore[assignment]
    (answer,) = generate_answers(model, samples()[:1], Evaluation(max_new_tokens=20))
    assert (answer.strip(), answer.ended) == ("yes", True)


def test_no_more_tokens_are_generated_than_there_are_positions(tmp_path: Path) -> None:
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = MultimodalModel.load(Model(path=str(tmp_path)), "target")
    asked = [Sample(str(k), (Turn("user", "x" * k),)) for k in (1, 9, 2)]
    lengths = [len(model.encoder.encode_prompt(sample)) for sample in asked]
    answers = generate_answers(model, asked, Evaluation(max_new_tokens=30))
    assert max(lengths) + 30 > 48
    assert not any(answer.ended for answer in answers)
    assert all(answers)
