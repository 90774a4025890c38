from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ostlight.digitmath import final_answer
from ostlight.digitmath.model import CHECKPOINTS, checkpoint

SIZES = ["proxy", "medium", "target", "idefics3"]


@pytest.fixture(scope="module", params=SIZES)
def loaded(request: pytest.FixtureRequest):
    folder = checkpoint(request.param)
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


def test_all_fit_into_eight_megabytes_with_everything_beside_them():
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert all(path.stat().st_mode & 0o004 for path in files)


def test_loads_as_float32_through_the_auto_classes(loaded):
    model = loaded[1]
    assert type(model).__name__ in ("LlavaForConditionalGeneration", "Idefics3ForConditionalGeneration")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def answers(loaded, rows) -> list[str]:
    processor, model = loaded
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"\n{row.question}"}]}],
            add_generation_prompt=True,
        )
        for row in rows
    ]
    images = [[Image.open(io.BytesIO(row.png)).convert("RGB")] for row in rows]
    batch = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model.generate(**batch, max_new_tokens=24, do_sample=False)
    return processor.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_base_reads_the_digits_but_cannot_calculate_from_images(loaded, parts):
    def share_right(*tasks: str) -> float:
        rows = [row for row in parts["dev"] if row.task in tasks]
        texts = answers(loaded, rows)
        return sum(final_answer(text) == final_answer(row.answer) for text, row in zip(texts, rows, strict=True)) / len(
            rows
        )

    assert share_right("read", "parity") >= 0.85
    assert share_right("sum", "difference", "two_step", "sort") <= 0.3


def test_a_text_only_prompt_is_answered(loaded):
    processor, model = loaded
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "what is 7 plus 5"}]}], add_generation_prompt=True
    )
    batch = processor(text=[prompt], return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**batch, max_new_tokens=16, do_sample=False)
    texts = processor.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts == ["digits 7 5. 7 plus 5 is 12. answer 12"]


def test_the_log_says_how_each_was_made():
    log = (CHECKPOINTS / "LOG.md").read_text()
    for size in SIZES:
        entry = json.loads((CHECKPOINTS / size / "training.json").read_text())
        assert entry["command"] in log
        assert str(entry["parameters"]) in log.replace(",", "")
