from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from ostlight.digitmath.digits import IMAGE_PIXELS, render
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ConfigError


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(checkpoint("proxy"))


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


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
    assert len(set(tokenizer.all_special_ids)) == len(tokenizer.all_special_tokens) == 8


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


def test_an_image_is_four_tokens_and_its_pixels_are_untouched(processor, tokenizer):
    pixels = render([5, 6, 7, 8])
    made = processor(
        text=[processor.apply_chat_template(conversation())], images=[Image.fromarray(pixels)], return_tensors="pt"
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert int((made["input_ids"] == image_id).sum()) == 4
    assert tuple(made["pixel_values"].shape) == (1, 3, IMAGE_PIXELS, IMAGE_PIXELS)
    back = (made["pixel_values"][0, 0].double() + 1) * 127.5
    assert np.abs(back.numpy() - pixels).max() < 1e-4


def test_an_unknown_checkpoint_names_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        checkpoint("huge")
    assert caught.value.source == "digitmath"
    assert "medium, proxy, scorer, target" in caught.value.problems[0]
