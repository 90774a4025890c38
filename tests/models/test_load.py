"""A model that cannot be loaded is refused in one line that names the setting and the fix."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
import transformers
from torch import Tensor

from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ModelError
from ostlight.models import load, proof
from ostlight.models.module import MultimodalModel

FAILURES = {
    "memory": (MemoryError(), r"out of memory; name a smaller model, or .* with proxy\.dtype=bfloat16"),
    "allocator": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory; name a"),
    "module": (ModuleNotFoundError("No module named 'timm.layers'", name="timm.layers"), r"; pip install timm$"),
    "torchvision": (
        ImportError("\nX requires the Torchvision library\nSee its page."),
        "torchvision that goes with your",
    ),
    "package": (ImportError("\nThis needs the Einops library.\nSee its page."), "This needs the Einops library.; inst"),
    "silent": (OSError(), "OSError"),
}


def committed() -> MultimodalModel:
    return MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")


@pytest.mark.parametrize("what", ["model", "processor"])
@pytest.mark.parametrize(("error", "fix"), FAILURES.values(), ids=list(FAILURES))
def test_a_failure_names_the_path_and_the_fix(
    what: str, error: Exception, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    if what == "model":
        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fail)
    else:
        monkeypatch.setattr(load, "load_processor", fail)
    with pytest.raises(ModelError, match=fix) as caught:
        committed()
    assert caught.value.setting == "proxy.path"
    assert what in str(caught.value)
    assert str(checkpoint("proxy")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_were_cut_are_refused(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("proxy"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(tmp_path / "cut")) as caught:
        MultimodalModel.load(Model(path=str(tmp_path / "cut")), "proxy")
    assert caught.value.setting == "proxy.path"


def saved(model: transformers.PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer = tiny_families.tokenizer_of(tiny_families.FAMILIES["llama"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_with_an_encoder_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = transformers.BartConfig(**sizes, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=300)
    path = saved(transformers.BartForConditionalGeneration(config), tmp_path)
    with pytest.raises(ModelError, match="bart.*encoder") as caught:
        MultimodalModel.load(Model(path=path), "proxy")
    assert caught.value.setting == "proxy.path"


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 300,
}


def test_a_model_that_reads_its_answers_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(transformers.BertConfig(**SMALL, is_decoder=False))
    with pytest.raises(ModelError, match="see the tokens behind it") as caught:
        MultimodalModel.load(Model(path=saved(model, tmp_path)), "proxy")
    assert caught.value.setting == "proxy.path"
    decoder = transformers.BertLMHeadModel(transformers.BertConfig(**SMALL, is_decoder=True))
    MultimodalModel.load(Model(path=saved(decoder, tmp_path)), "proxy")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_family_that_is_not_tested_is_taken_where_it_does_all_that(dtype: str, tmp_path: Path) -> None:
    for kind in ("Gemma2", "Mixtral"):
        config = getattr(transformers, f"{kind}Config")(**SMALL, num_key_value_heads=1, head_dim=8)
        path = saved(getattr(transformers, f"{kind}ForCausalLM")(config), tmp_path / kind)
        assert len(MultimodalModel.load(Model(path=path, dtype=dtype), "proxy").trained)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Rwkv", {"hidden_size": 16, "attention_hidden_size": 16, "vocab_size": 300}, "padded on the left"),
        ("Roberta", {**SMALL, "is_decoder": True, "pad_token_id": 0}, "counts in another way"),
    ],
)
def test_a_model_that_takes_no_padding_or_positions_of_ours_is_refused(
    kind: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings, **({"num_hidden_layers": 2} if kind == "Rwkv" else {}))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    with pytest.raises(ModelError, match=reason):
        MultimodalModel.load(Model(path=saved(model, tmp_path)), "proxy")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda logits, batch: logits * len(batch), "in a batch padded on the right"),
        (lambda logits, batch: logits[:, :0], "does not run"),
        (lambda logits, batch: logits if len(batch) == 1 else logits[:, :0], "runs on single samples and not"),
    ],
    ids=["mixes samples", "never runs", "runs alone"],
)
def test_a_model_whose_batches_are_not_known_is_refused(
    fault: Callable[[Tensor, Tensor], Tensor], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.Qwen2Config(**SMALL, num_key_value_heads=1)
    path = saved(transformers.Qwen2ForCausalLM(config), tmp_path)
    MultimodalModel.load(Model(path=path), "target")  # as it is, it is taken
    forward = transformers.Qwen2ForCausalLM.forward

    def faulty(self: Any, input_ids: Tensor, **inputs: Any) -> Any:
        output = forward(self, input_ids=input_ids, **inputs)
        output.logits = fault(output.logits, input_ids.float())
        return output

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "forward", faulty)
    with pytest.raises(ModelError, match=reason) as caught:
        MultimodalModel.load(Model(path=path), "target")
    assert caught.value.setting == "target.path"
    assert "\n" not in str(caught.value)


def test_a_tested_family_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_encoded", lambda encoder: pytest.fail("tried"))
    committed()


def test_the_table_of_models_names_every_tested_family() -> None:
    table = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text()
    assert {kind for kind in proof.TESTED if f"`{kind}`" not in table} == set()
    assert set(tiny_families.FAMILIES) == proof.TESTED
