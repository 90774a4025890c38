from __future__ import annotations

from pathlib import Path

import pytest
from _digitmath_models import SIZES, build_model, build_processor
from PIL import Image

from ostlight.digitmath.digits import render
from ostlight.digitmath.model import CHECKPOINTS, checkpoint

CONVERSATION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read the top row"}]}]


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_untied_head_and_one_vision_token_per_cell(size: str):
    model, processor = build_model(size), build_processor(SIZES[size].family)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    expected = {"proxy": 0.29, "medium": 0.56, "target": 1.16, "large": 2.42, "idefics3": 1.11}[size]
    assert millions == pytest.approx(expected, rel=0.03)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    batch = processor(
        text=[processor.apply_chat_template(CONVERSATION)],
        images=[Image.fromarray(render([1, 2, 3, 4]))],
        return_tensors="pt",
    )
    assert model(**batch).logits.shape == (1, batch["input_ids"].shape[1], len(processor.tokenizer))


@pytest.mark.parametrize("size", [size for size in SIZES if (CHECKPOINTS / size).is_dir()])
def test_the_committed_checkpoints_are_of_these_models(size: str, tmp_path: Path):
    build_model(size).save_pretrained(tmp_path)
    build_processor(SIZES[size].family).save_pretrained(tmp_path)
    committed = {path.name: path.read_bytes() for path in checkpoint(size).iterdir()}
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".safetensors"}
    assert {"config.json", "processor_config.json", "tokenizer.json"} <= set(made)
    assert made == {name: committed[name] for name in made}
