from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from ostlight.digitmath.digits import PICTURE_PIXELS, render
from ostlight.digitmath.model import SIZES, build_model, build_processor, checkpoint
from ostlight.digitmath.tokenizer import SPECIALS, build_tokenizer
from ostlight.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_word_of_the_pool_is_a_token_and_decodes_back(parts, tokenizer):
    texts = {text for rows in parts.values() for row in rows for text in (row.question, row.answer)}
    assert len(texts) > 300
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        spelt = [token for token in tokenizer.convert_ids_to_tokens(ids) if re.fullmatch("##[a-z]|[b-hj-z]", token)]
        assert not spelt, (text, spelt)


def test_numbers_are_digits_and_other_words_are_spelt(tokenizer):
    assert tokenizer.tokenize("7 plus 5 is 12.") == ["7", "plus", "5", "is", "1", "##2", "##."]
    assert tokenizer.tokenize("Yak!") == ["y", "##a", "##k", "##!"]
    assert tokenizer.decode(tokenizer("Yak, 305 (ok)?")["input_ids"]) == "yak, 305 (ok)?"


def test_special_tokens_are_single_and_vanish_from_decoded_text(tokenizer):
    ids = tokenizer("<bos><user><image>\nread it<assistant>answer 3<eos>")["input_ids"]
    assert [tokenizer.decode([index]) for index in ids[:3]] == ["<bos>", "<user>", "<image>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "read it answer 3"
    assert len(set(tokenizer.convert_tokens_to_ids(list(SPECIALS)))) == len(SPECIALS)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def conversation(answer: str | None = "digits 3 7. answer 3 7") -> list[dict]:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nread the top row"}]}]
    return turns + ([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])


def test_chat_template_lays_out_the_turns_and_ends_the_answer(processor):
    whole = processor.apply_chat_template(conversation())
    prompt = processor.apply_chat_template(conversation(None), add_generation_prompt=True)
    assert whole == "<bos><user><image>\nread the top row<assistant>digits 3 7. answer 3 7<eos>"
    assert prompt == whole[: whole.index("digits")]


def test_chat_template_takes_plain_text_and_a_system_turn(processor):
    turns = [
        {"role": "system", "content": "think"},
        {"role": "user", "content": "what is 7 plus 5"},
        {"role": "assistant", "content": "answer 12"},
    ]
    expected = "<bos><system>think<user>what is 7 plus 5<assistant>answer 12<eos>"
    assert processor.apply_chat_template(turns) == expected
    assert processor.tokenizer.apply_chat_template(turns, tokenize=False) == expected


def test_a_picture_is_four_tokens_and_its_pixels_are_untouched(processor, tokenizer):
    pixels = render([5, 6, 7, 8])
    made = processor(
        text=[processor.apply_chat_template(conversation())], images=[Image.fromarray(pixels)], return_tensors="pt"
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert int((made["input_ids"] == image_id).sum()) == 4
    assert tuple(made["pixel_values"].shape) == (1, 3, PICTURE_PIXELS, PICTURE_PIXELS)
    back = (made["pixel_values"][0, 0].double() + 1) * 127.5
    assert np.abs(back.numpy() - pixels).max() < 1e-4


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_untied_head_and_one_vision_token_per_cell(size: str):
    model, processor = build_model(size), build_processor(SIZES[size].family)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    expected = {"proxy": 0.29, "medium": 0.56, "target": 1.16, "large": 2.42, "idefics3": 1.11}[size]
    assert millions == pytest.approx(expected, rel=0.03)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    batch = processor(
        text=[processor.apply_chat_template(conversation())],
        images=[Image.fromarray(render([1, 2, 3, 4]))],
        return_tensors="pt",
    )
    assert model(**batch).logits.shape == (1, batch["input_ids"].shape[1], len(processor.tokenizer))


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(ConfigError, match="proxy, medium, target, large, idefics3"):
        build_model("huge")
    with pytest.raises(ConfigError, match="proxy, scorer, target"):
        checkpoint("huge")
