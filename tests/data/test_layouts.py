"""The same conversation in every layout a record may have."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Turn
from ostlight.errors import BadRecord


def test_sharegpt_with_system_several_turns_and_images(shade: Callable, images: Path, jsonl: Callable) -> None:
    record = {
        "id": 12,
        "system": "Be brief.",
        "images": ["pics/0.png", "pics/1.png"],
        "conversations": [
            {"from": "human", "value": "<image>Who?"},
            {"from": "gpt", "value": "A."},
            {"from": "human", "value": "And <image>?"},
            {"from": "gpt", "value": "B."},
        ],
    }
    sample = Pool.open(jsonl(record))[0]
    assert sample.id == "12"
    assert sample.turns == (
        Turn("system", "Be brief."),
        Turn("user", "<image>Who?"),
        Turn("assistant", "A.", trained=True),
        Turn("user", "And <image>?"),
        Turn("assistant", "B.", trained=True),
    )
    assert [shade(image) for image in sample.images] == [0, 1]
    assert sample.answer == "B."


def _url(png: Callable, shade: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(shade)).decode()


def test_message_parts_keep_images_where_they_stand(
    shade: Callable, images: Path, jsonl: Callable, png: Callable
) -> None:
    record = {
        "messages": [
            {"role": "system", "content": "Look."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Is "},
                    {"type": "image_url", "image_url": {"url": _url(png, 7)}},
                    {"type": "text", "value": " like "},
                    {"type": "image_url", "value": "pics/2.png"},
                    {"type": "text", "text": "?"},
                ],
                "loss_weight": 0.0,
            },
            {"role": "assistant", "content": "Hm.", "loss_weight": 0.0},
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": [{"type": "text", "value": "No."}], "loss_weight": 1.0},
        ]
    }
    sample = Pool.open(jsonl(record))[0]
    assert [turn.text for turn in sample.turns] == ["Look.", "Is <image> like <image>?", "Hm.", "Well?", "No."]
    assert [turn.trained for turn in sample.turns] == [False, False, False, False, True]
    assert [shade(image) for image in sample.images] == [7, 2]


def test_bare_image_parts_take_the_records_own_images_in_order(shade: Callable, images: Path, jsonl: Callable) -> None:
    """As TRL writes them: parts of type image without a image, and a column of images."""
    content = [
        {"type": "image"},
        {"type": "image", "image": "pics/3.png"},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "!"}]
    sample = Pool.open(jsonl({"messages": messages, "images": ["pics/0.png", "pics/1.png"]}))[0]
    assert [shade(image) for image in sample.images] == [0, 3, 1]


def test_alpaca_with_history_and_system(jsonl: Callable) -> None:
    record = {"instruction": "Translate.", "input": "Hund", "output": "dog", "system": "S", "history": [["a", "b"]]}
    assert Pool.open(jsonl(record))[0].turns == (
        Turn("system", "S"),
        Turn("user", "a"),
        Turn("assistant", "b", trained=True),
        Turn("user", "Translate.\nHund"),
        Turn("assistant", "dog", trained=True),
    )


def test_question_and_answer(images: Path, jsonl: Callable) -> None:
    sample = Pool.open(jsonl({"question": "Which?", "answer": "This.", "image": "pics/1.png", "split": "a"}))[0]
    assert [turn.text for turn in sample.turns] == ["<image>\nWhich?", "This."]
    assert len(sample.images) == 1
    assert sample.tags == {"split": "a"}


def test_prompt_and_completion_as_texts_or_turns(images: Path, jsonl: Callable) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
             {"role": "assistant", "content": "4"}, {"role": "user", "content": [{"type": "image"},
             {"type": "text", "text": "And this?"}]}]  # fmt: skip
    records = [
        {"prompt": "2+2?", "completion": " 4"},
        {"prompt": asked, "completion": [{"role": "assistant", "content": "a shade"}], "images": ["pics/1.png"]},
        {"prompt": asked, "completion": "a shade", "images": ["pics/1.png"]},
    ]
    text, turns, mixed = Pool.open(jsonl(records), image_root=images)
    assert [(t.role, t.text, t.trained) for t in text.turns] == [("user", "2+2?", False), ("assistant", " 4", True)]
    for sample in (turns, mixed):
        assert [t.role for t in sample.turns] == ["system", "user", "assistant", "user", "assistant"]
        assert [t.trained for t in sample.turns] == [False, False, False, False, True], "the prompt's answers are given"
        assert sample.answer == "a shade"
        assert len(sample.images) == 1
        assert "<image>" in sample.turns[3].text


def test_images_without_any_mark_come_before_the_first_user_turn(images: Path, jsonl: Callable, chat: Callable) -> None:
    record = chat("What?", image=["pics/0.png", "pics/1.png"], system="S")
    assert Pool.open(jsonl(record))[0].turns[1].text == "<image>\n<image>\nWhat?"


def test_other_scalar_fields_are_tags(jsonl: Callable, chat: Callable) -> None:
    record = chat(
        "Hi",
        id="a",
        task="sum",
        level=3,
        score=0.5,
        clean=True,
        level_2=3.0,
        absent=None,
        empty="",
        unknown=float("nan"),
        lists=[1],
        tags={"task": "hidden", "skill": "add"},
        meta={"source": "web", "deep": {}},
    )
    expected = {
        "task": "sum",
        "level": "3",
        "level_2": "3",
        "score": "0.5",
        "clean": "true",
        "skill": "add",
        "source": "web",
    }
    assert Pool.open(jsonl(record))[0].tags == expected


@pytest.mark.parametrize("field", ["conversations", "messages"])
@pytest.mark.parametrize(("who", "what"), [("from", "value"), ("role", "content")])
def test_either_spelling_of_a_turn_in_either_list(jsonl: Callable, field: str, who: str, what: str) -> None:
    turns: list[dict[str, Any]] = [{who: "user", what: "Hi"}, {who: "assistant", what: "Hello"}]
    assert Pool.open(jsonl({field: turns}))[0].turns == (Turn("user", "Hi"), Turn("assistant", "Hello", trained=True))


def test_a_named_layout_holds_for_every_record(jsonl: Callable, chat: Callable) -> None:
    both = {**chat("a", "b"), "instruction": "c", "output": "d"}
    assert Pool.open(jsonl(both))[0].answer == "b"
    assert Pool.open(jsonl(both), format="alpaca")[0].answer == "d"
    (_, bad) = next(Pool.open(jsonl(chat("a", "b")), format="alpaca").read([0]))
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.field) == ("bad_field", None)
