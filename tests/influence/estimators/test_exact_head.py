"""The closed form for a linear head against the step taken in full."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ostlight.config.schema import Training
from ostlight.influence.anchors import Anchors
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.exact_head import ExactHead, untied_linear_head
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import Encoded
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.models.load import collator_for
from ostlight.models.module import MultimodalModel


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-3)])
def test_it_is_exact(proxy, samples, dtype: str, bound: float):
    model = proxy(dtype)
    parameters = select_parameters(model.model, "head")
    head = untied_linear_head(model.model, parameters)
    assert head is not None
    anchors = make_anchors(model, samples("anchors"), [s.tags["task"] for s in samples("anchors")], 200)
    batch = model.batches(samples("pool")[:6], 10_000)[0]
    fast = ExactHead(SimulatedStep(model.model, parameters, anchors, 0.3), head).columns(batch)
    slow = Exact(SimulatedStep(model.model, parameters, anchors, 0.3)).columns(batch)
    for name in ("score", "loss", "gradient_norm", "utility_by_group"):
        found = torch.as_tensor(fast[name]).double()
        expected = torch.tensor(slow[name], dtype=torch.float64)
        assert float((found - expected).abs().max() / expected.abs().median()) < bound, name


def test_other_scopes_take_the_general_path(proxy):
    model = proxy("float32")
    assert untied_linear_head(model.model, select_parameters(model.model, "blocks")) is None
    assert untied_linear_head(model.model, select_parameters(model.model, "all")) is None
    model.model.set_output_embeddings(torch.nn.Linear(1, 1))
    head = model.model.get_output_embeddings()
    model.model.get_input_embeddings().weight = head.weight
    assert untied_linear_head(model.model, {"lm_head.weight": head.weight}) is None


def test_a_sample_without_a_finite_loss_is_told(proxy, samples):
    model = proxy("float32")
    parameters = select_parameters(model.model, "head")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    head = untied_linear_head(model.model, parameters)
    assert head is not None
    batch = model.batches(samples("pool")[:3], 10_000)[0]
    batch.inputs["pixel_values"][1] = float("nan")
    failures = ExactHead(SimulatedStep(model.model, parameters, anchors, 0.3), head).columns(batch)["failure"]
    assert [f is not None for f in failures] == [False, True, False]


SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def granite() -> nn.Module:
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZES, logits_scaling=8.0))


def gemma2() -> nn.Module:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, final_logit_softcapping=2.0))


def hooked() -> nn.Module:
    model: Any = llama()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 8)
    return model


def hooked_outside() -> nn.Module:
    model = llama()

    def halve(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.logits = output.logits / 2
        return output

    model.register_forward_hook(halve)
    return model


def both_paths(build: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[ExactHead, Tensor, Tensor]:
    """``ExactHead``, its scores, and those of ``Exact``."""
    torch.manual_seed(0)
    bare: Any = build().eval()
    encoder: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    model = MultimodalModel(bare, encoder, collator_for(bare, encoder), Training()).to(dtype)

    def batch(count: int, length: int) -> Batch:
        ids = torch.randint(1, SIZES["vocab_size"], (count, length))
        parts = [Encoded({"input_ids": row}, row.masked_fill(torch.arange(length) < 3, -100)) for row in ids]
        return model.collator.batch([SimpleNamespace(id=str(k)) for k in range(count)], parts)  # type: ignore[misc]

    anchors = Anchors([batch(3, 7), batch(2, 9)], SampleTask())
    step, candidates = SimulatedStep(model.model, select_parameters(bare, "head"), anchors, 0.3), batch(4, 8)
    head = untied_linear_head(model.model, step.parameters)
    assert head is not None
    fast, slow = ExactHead(step, head), Exact(step)
    found, expected = (torch.as_tensor(one.columns(candidates)["score"]).double() for one in (fast, slow))
    return fast, found, expected


@pytest.mark.parametrize("build", [granite, gemma2, hooked, hooked_outside])
def test_logits_that_are_not_the_heads_own_take_the_general_path(build: Callable[[], nn.Module]) -> None:
    fast, found, expected = both_paths(build, torch.float64)
    assert isinstance(fast.general, Exact)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_heads_own_logits_take_the_closed_form(dtype: torch.dtype) -> None:
    fast, found, expected = both_paths(llama, dtype)
    assert fast.general is None
    torch.testing.assert_close(found, expected, rtol=1e-3 if dtype == torch.float32 else 1e-6, atol=0.0)
