"""Labels of samples with images: behind, between and before them, however many tokens an image takes."""

from __future__ import annotations

import io
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ostlight.data.sample import ImageRef, Sample, Turn
from ostlight.errors import BadRecord
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.encoding.processor import load_processor
from ostlight.models.losses import IGNORED

sys.path.insert(0, str(Path(__file__).parent))

import chat_templates as templates

IMAGES = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- for part in m.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""Written with ``IMAGE`` for the model's placeholder."""
STRINGS = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"


def template(placeholder: str) -> str:
    return IMAGES.replace("IMAGE", placeholder)


def picture(width: int = 8, height: int = 8) -> ImageRef:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(file, "png")
    return ImageRef(data=file.getvalue())


def llava(chat: str = template("<image>"), tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    tokenizer = tokenizer or templates.byte_tokenizer(chat)
    side = {"height": 8, "width": 8}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=side, crop_size=side), tokenizer, patch_size=4, chat_template=chat,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def saved(folder: Path, chat: str, settings: dict[str, Any]) -> Any:
    """A processor with a video part, which cannot be made without torchvision, but loaded."""
    templates.byte_tokenizer(chat).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return load_processor(str(folder))


def onevision(folder: Path) -> Any:
    """Takes more tokens for an image that is alone in a sample than for one of several."""
    pixels = LlavaOnevisionImageProcessorPil(
        size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 8], [8, 16], [16, 8], [16, 16]]
    )
    settings = {
        "image_processor": pixels.to_dict(), "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 4,
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "vision_feature_select_strategy": "full",
    }  # fmt: skip
    return saved(folder, template("<image>"), settings)


def gemma() -> Any:
    """Writes another token for an image as a whole than for its parts, and blank lines around it."""
    chat = template("<start_of_image>")
    tokenizer = templates.byte_tokenizer(chat)
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(named.values())})
    tokenizer._set_model_specific_special_tokens(named)
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 8, "width": 8}), tokenizer, chat_template=chat, image_seq_length=4
    )


def qwen(folder: Path) -> Any:
    """Refuses images that are 200 times as wide as high."""
    area = 8 * 8
    pixels = Qwen2VLImageProcessorPil(
        patch_size=2, temporal_patch_size=2, merge_size=2, size={"shortest_edge": area, "longest_edge": 4 * area}
    )
    settings = {
        "image_processor": pixels.to_dict(), "processor_class": "Qwen2_5_VLProcessor",
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 2, "merge_size": 2},
    }  # fmt: skip
    return saved(folder, template("<|vision_start|><|image_pad|><|vision_end|>"), settings)


def encoder_of(family: str, folder: Path) -> Encoder:
    of_folder = {"onevision": onevision, "qwen": qwen}
    processor = of_folder[family](folder) if family in of_folder else {"llava": llava, "gemma": gemma}[family]()
    return Encoder(processor, 999)


def labelled(encoded: Encoded, encoder: Encoder) -> list[str]:
    pairs = zip(encoded.labels.tolist(), encoded.inputs["input_ids"].tolist(), strict=True)
    runs = [[token for _, token in run] for is_label, run in groupby(pairs, lambda p: p[0] != IGNORED) if is_label]
    return ["".join(encoder.tokenizer.decode(run).split()) for run in runs]


def conversation(*texts: str, images: tuple[ImageRef, ...] = ()) -> Sample:
    turns = [Turn(("user", "assistant")[k % 2], text, k % 2 == 1) for k, text in enumerate(texts)]  # type: ignore[arg-type]
    return Sample("s", tuple(turns), images)


@pytest.mark.parametrize("family", ["llava", "onevision", "gemma", "qwen"])
def test_answers_before_between_and_behind_images(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(family, tmp_path)
    wide, tall, square = picture(16, 8), picture(8, 24), picture()
    given = conversation(
        "answer yes?", "yes", "<image>\nWhat?", "first answer", "And <image>? Or\n<image>", "yes", "So?", "no",
        images=(wide, square, tall),
    )  # fmt: skip
    expected = [f"{text}<|im_end|>" for text in ("yes", "firstanswer", "yes", "no")]
    assert labelled(encoder.encode(given), encoder) == expected
    alone = conversation("<image>\nWhat?", "first answer", images=(tall,))
    assert labelled(encoder.encode(alone), encoder) == ["firstanswer<|im_end|>"]
    assert labelled(encoder.encode(conversation("no picture", "yes")), encoder) == ["yes<|im_end|>"]


def test_tokens_are_those_of_the_processors_own_chat_template(tmp_path: Path) -> None:
    processor = onevision(tmp_path)
    given = conversation("<image>\nWhat?", "yes", "<image>\nAnd?", "no", images=(picture(16, 8), picture(8, 24)))
    messages = [
        {"role": t.role, "content": [{"type": "image"}] * t.text.count("<image>")
         + [{"type": "text", "text": t.text.removeprefix("<image>")}]}
        for t in given.turns
    ]  # fmt: skip
    text = processor.apply_chat_template(messages, tokenize=False)
    expected = processor(text=[text], images=[[ref.open() for ref in given.images]], return_tensors="pt")
    encoded = Encoder(processor, 999).encode(given)
    for name in ("input_ids", "pixel_values"):
        value = encoded.inputs[name]
        assert torch.equal(value[None] if name == "input_ids" else value, expected[name])


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_tokenizer_that_treats_the_first_word_differently(scheme: str) -> None:
    chat = "{% for m in messages %}{{ m.role }}: {% for part in m.content %}" + (
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}</s>{% endfor %}"
    )
    encoder = Encoder(llava(chat, templates.metaspace_tokenizer(chat, scheme)), 999)
    for number in range(3):
        given = conversation(f"<image>\nquestion {number}?", f"answer {number}", images=(picture(),))
        assert labelled(encoder.encode(given), encoder) == [f"answer{number}</s>"]


def test_a_template_that_takes_strings_gets_strings() -> None:
    encoder = Encoder(llava(STRINGS), 999)
    text = encoder.encode(conversation("no picture", "yes"))
    assert (
        encoder.tokenizer.decode(text.inputs["input_ids"]) == "user: no picture<|im_end|>\nassistant: yes<|im_end|>\n"
    )
    shown = encoder.encode(conversation("<image>\nWhat?", "yes", images=(picture(),)))
    assert labelled(shown, encoder) == ["yes<|im_end|>"]
    assert encoder.tokenizer.decode(shown.inputs["input_ids"]).startswith("user: " + "<image>" * 4 + "\nWhat?")


def test_the_tokenizers_first_token_comes_before_a_conversation_with_images() -> None:
    chat = template("<image>")
    encoder = Encoder(llava(chat, templates.byte_tokenizer(chat, adds_bos=True)), 999)
    given = conversation("<image>\nWhat?", "yes", images=(picture(),))
    ids = encoder.encode(given).inputs["input_ids"].tolist()
    assert ids[0] == encoder.tokenizer.bos_token_id
    assert ids.count(encoder.tokenizer.bos_token_id) == 1
    assert labelled(encoder.encode(given), encoder) == ["yes<|im_end|>"]


def refused(encoder: Encoder, given: Sample) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        encoder.encode(given)
    return caught.value


def test_what_a_processor_refuses_is_rejected_in_its_own_words(tmp_path: Path) -> None:
    encoder = Encoder(qwen(tmp_path), 999)
    bad = refused(encoder, conversation("<image>\nWhat?", "a line", images=(picture(900, 2),)))
    assert (bad.reason, bad.field) == ("processor_refused", "images")
    assert "aspect ratio" in bad.detail
    encoder.encode(conversation("<image>\nWhat?", "a square", images=(picture(),)))


@pytest.mark.parametrize("text", ["it is <|image_pad|> I think", "<|video_pad|>"])
@pytest.mark.parametrize("in_answer", [True, False])
def test_the_models_own_placeholder_in_a_text_is_rejected(text: str, in_answer: bool, tmp_path: Path) -> None:
    encoder = Encoder(qwen(tmp_path), 999)
    turns = ("which?", text) if in_answer else (text, "which?")
    bad = refused(encoder, conversation(*turns))
    assert (bad.reason, bad.field) == ("media_token_in_text", "turns")
    with pytest.raises(BadRecord, match="media_token_in_text"):
        encoder.encode_prompt(conversation(text, "which?"))


def test_an_image_in_an_answer_is_rejected() -> None:
    encoder = Encoder(llava(), 999)
    bad = refused(encoder, conversation("draw it", "<image> here", images=(picture(),)))
    assert bad.reason == "image_in_answer"


def test_an_image_of_which_a_library_raises_anything_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise NotImplementedError("Unimplemented pixel format 53")

    monkeypatch.setattr("ostlight.models.encoding.encoder.open_images", broken)
    bad = refused(Encoder(llava(), 999), conversation("<image>", "yes", images=(picture(),)))
    assert (bad.reason, bad.field) == ("corrupt_image", "images")
    assert "pixel format 53" in bad.detail


def test_a_processor_that_runs_out_of_memory_is_no_fault_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(LlavaProcessor, "__call__", exhausted)
    with pytest.raises(MemoryError):
        Encoder(llava(), 999).encode(conversation("<image>", "yes", images=(picture(),)))


@pytest.mark.parametrize("family", ["llava", "gemma", "qwen"])
def test_a_cut_anywhere_in_an_image_says_so(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(family, tmp_path)
    given = conversation("hi", "yes", "xxx<image>\nWhat?", "a thing", images=(picture(),))
    whole = encoder.encode(given)
    parts = (whole.inputs["input_ids"] == encoder.image_token_id).nonzero()[:, 0].tolist()
    assert len(parts) >= 4
    for place in parts:
        encoder.max_length = place
        bad = refused(encoder, given)
        assert (bad.reason, bad.field) == ("image_cut", "images")
    encoder.max_length = parts[-1] + 1
    cut = encoder.encode(given)
    assert labelled(cut, encoder) == ["yes<|im_end|>"]
    assert cut.answer_cut


def test_the_processor_is_left_as_it_was() -> None:
    processor = llava()
    tokenizer = processor.tokenizer
    encoder = Encoder(processor, 999)
    encoder.encode(conversation("<image>", "yes", images=(picture(),)))
    refused(encoder, Sample("s", (Turn("user", "<image>"), Turn("assistant", "yes", True))))
    assert processor.tokenizer is tokenizer
