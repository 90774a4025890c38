"""Roles, loss flags, tool calls and images of single turns."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord


def muted(**flags: Any) -> dict:
    return {
        "messages": [
            {"role": "user", "content": "one?"},
            {"role": "assistant", "content": "wrong", **flags},
            {"role": "user", "content": "two?"},
            {"role": "assistant", "content": "right"},
        ]
    }


def rejected(path: Path, **options: Any) -> BadRecord:
    (_, bad), *_ = Pool.open(path, **options).read([0])
    assert isinstance(bad, BadRecord)
    return bad


@pytest.mark.parametrize("flag", ["loss", "loss_weight", "loss_scale", "loss_mask", "weight", "train", "trainable"])
@pytest.mark.parametrize("value", [0, 0.0, False, 1, 1.0, True, None])
def test_every_loss_flag_means_the_same(jsonl: Callable, flag: str, value: Any) -> None:
    sample = Pool.open(jsonl(muted(**{flag: value})))[0]
    assert [turn.trained for turn in sample.turns] == [False, value is None or bool(value), False, True]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"mask": 1}, "messages[1].mask"),
        ({"train_detail": [{"begin_offset": 0}]}, "messages[1].train_detail"),
        ({"lossWeight": 0}, "messages[1].lossWeight"),
        ({"loss": 0.3}, "messages[1].loss"),
        ({"train": "false"}, "messages[1].train"),
        ({"loss": float("nan")}, "messages[1].loss"),
        ({"loss": 0, "train": True}, "messages[1]"),
    ],
)
def test_a_flag_that_is_not_understood_is_refused_by_name(jsonl: Callable, flags: dict, field: str) -> None:
    bad = rejected(jsonl(muted(**flags)))
    assert (bad.reason, bad.field) == ("bad_field", field)


def test_a_list_of_flags_beside_the_turns_is_refused(jsonl: Callable) -> None:
    bad = rejected(jsonl({**muted(), "loss_mask": [0, 1]}))
    assert (bad.reason, bad.field) == ("bad_field", "loss_mask")


@pytest.mark.parametrize("flag", ["loss_mask", "loss_weight", "loss_scale", "train", "trainable"])
def test_a_record_that_is_not_to_be_trained_on_is_rejected(jsonl: Callable, chat: Callable, flag: str) -> None:
    for value in (0, False, 0.0):
        bad = rejected(jsonl(chat("q", "a", **{flag: value})))
        assert (bad.reason, bad.field) == ("no_answer", flag)
    assert Pool.open(jsonl(chat("q", "a", **{flag: 1})))[0].turns[1].trained


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own_stands_before_the_answer(jsonl: Callable, field: str) -> None:
    def record(who: str, content: str | None, thought: Any, **more: Any) -> dict:
        turns = [{"role": "user", "content": "?"}, {"role": who, "content": content, field: thought, **more}]
        return {"messages": [*turns, {"role": "assistant", "content": "end"}]}

    sample = Pool.open(jsonl(record("assistant", "Yes.", "Is it?\n")))[0]
    assert sample.turns[1] == Turn("assistant", "<think>\nIs it?\n</think>\n\nYes.", True)
    for nothing in (None, ""):
        assert Pool.open(jsonl(record("assistant", "Yes.", nothing)))[0].turns[1].text == "Yes."
    calling = Pool.open(jsonl(record("assistant", None, "Look.", tool_calls=[CALL])))[0]
    assert calling.turns[1] == Turn("assistant", "<think>\nLook.\n</think>\n\n", True, (CALL,))
    assert rejected(jsonl(record("assistant", "", "Is it?"))).reason == "empty_answer"
    for wrong in (record("user", "x", "y"), record("assistant", "x", 3), record("assistant", "<think>a</think>b", "c")):
        bad = rejected(jsonl(wrong))
        assert (bad.reason, bad.field) == ("bad_field", f"messages[1].{field}")


def test_content_parts_of_other_apis(images: Path, shade: Callable, png: Callable, jsonl: Callable) -> None:
    data = base64.b64encode(png(2)).decode()
    spellings: list[tuple[list[dict], int]] = [
        ([{"type": "input_image", "image_url": "pics/1.png"}, {"type": "input_text", "text": "q"}], 1),
        ([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
          {"type": "text", "text": "q"}], 2),
        ([{"type": "image", "source": {"type": "url", "url": "pics/3.png"}}, {"type": "text", "text": "q"}], 3),
        ([{"image": "pics/1.png"}, {"text": "q"}], 1),
    ]  # fmt: skip
    for parts, expected in spellings:
        answer = {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
        sample = Pool.open(jsonl({"messages": [{"role": "user", "content": parts}, answer]}))[0]
        assert [turn.text for turn in sample.turns] == ["<image>q", "a"]
        assert [shade(image) for image in sample.images] == [expected]


@pytest.mark.parametrize(
    ("named", "role"),
    [
        ("developer", "developer"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
        ("ipython", None),
        ("Human", "user"),
    ],
)
def test_roles(jsonl: Callable, named: str, role: str | None) -> None:
    record = {"messages": [{"role": named, "content": "x"}, {"role": "assistant", "content": "y"}]}
    pool = Pool.open(jsonl(record))
    if role is None:
        assert rejected(pool.files[0]).reason == "bad_role"
    else:
        assert [turn.role for turn in pool[0].turns] == [role, "assistant"]


def test_turns_of_one_speaker_in_a_row_stay_apart(jsonl: Callable, chat: Callable) -> None:
    record = {"messages": [{"role": who, "content": what} for who, what in (("user", "a"), ("user", "b"))]}
    record["messages"].append({"role": "assistant", "content": "c"})
    assert [turn.text for turn in Pool.open(jsonl(record))[0].turns] == ["a", "b", "c"]


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "look", "arguments": '{"at": "it"}'}}],
        },
        {"role": "assistant", "tool_calls": json.dumps([{"name": "look", "arguments": {"at": "it"}}])},
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": "it"}'}},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "it"}}'},
    ],
)
def test_tool_calls_of_any_spelling(jsonl: Callable, message: dict) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "?"},
            message,
            {"role": "tool", "content": "red", "name": "look", "tool_call_id": "1"},
            {"role": "assistant", "content": "Red."},
        ],
        "tools": json.dumps([{"name": "look", "parameters": {}}]),
    }
    sample = Pool.open(jsonl(record))[0]
    assert sample.turns[1] == Turn("assistant", "", True, (CALL,))
    assert sample.turns[2] == Turn("tool", "red", name="look", tool_call_id="1")
    assert sample.tools == ({"type": "function", "function": {"name": "look", "parameters": {}}},)
    assert sample.tags == {}


def test_a_call_without_a_function_is_refused(jsonl: Callable) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [{"type": "function"}]}]
    bad = rejected(jsonl({"messages": turns}))
    assert (bad.reason, bad.field) == ("bad_field", "messages[1].tool_calls")


def test_text_in_tools_that_describes_no_function_is_a_tag(jsonl: Callable, chat: Callable) -> None:
    sample = Pool.open(jsonl(chat("a", "b", tools="hammer")))[0]
    assert (sample.tools, sample.tags) == ((), {"tools": "hammer"})


@pytest.mark.parametrize(
    "nothing",
    [
        {"image": None},
        {"image": ""},
        {"images": [None]},
        {"images": [""]},
        {"images": [[]]},
        {"image": {"bytes": None, "path": None}},
        {"images": [{"bytes": None, "path": None}], "image": None},
        {"image": {}},
    ],
)
def test_null_images_are_no_image(jsonl: Callable, chat: Callable, nothing: dict) -> None:
    assert Pool.open(jsonl(chat("text?", **nothing)))[0].images == ()


@pytest.mark.parametrize(
    "field", [{"images": [["pics/1.png"]]}, {"images": '["pics/1.png"]'}, {"image": ["pics/1.png"]}]
)
def test_lists_of_images_of_any_depth(
    images: Path, shade: Callable, jsonl: Callable, chat: Callable, field: dict
) -> None:
    assert [shade(image) for image in Pool.open(jsonl(chat(**field)))[0].images] == [1]


def test_a_turns_own_images_and_those_in_img_tags(images: Path, shade: Callable, jsonl: Callable) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "Which?", "images": ["pics/2.png"]},
            {"role": "assistant", "content": "This."},
            {"role": "user", "content": "Picture 2: <img>pics/3.png</img>\nAnd <img>pics/1.png</img>?"},
            {"role": "assistant", "content": "Write <img>it.png</img>."},
        ]
    }
    sample = Pool.open(jsonl(record))[0]
    assert [turn.text for turn in sample.turns[::2]] == ["<image>\nWhich?", "Picture 2: <image>\nAnd <image>?"]
    assert [shade(image) for image in sample.images] == [2, 3, 1]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": [{"type": "text", "text": "Look.", "image": "pics/1.png"}]},
        {"content": [{"text": "Look.", "image": "pics/1.png"}]},
        {"content": [{"type": "text", "text": "Look."}, {"image": "pics/1.png"}], "images": ["pics/1.png"]},
    ],
)
def test_an_image_that_would_be_lost_or_read_twice_is_refused(images: Path, jsonl: Callable, turn: dict) -> None:
    record = {"messages": [{"role": "user", **turn}, {"role": "assistant", "content": "b"}]}
    ((_, bad),) = Pool.open(jsonl(record)).read([0])
    assert isinstance(bad, BadRecord)
    assert "messages[0]" in bad.detail


def test_the_layout_is_the_one_that_is_filled(jsonl: Callable) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for empty in (None, [], ""):
        assert Pool.open(jsonl({"conversations": empty, "messages": turns}))[0].answer == "b"
    assert Pool.open(jsonl({"conversations": json.dumps(turns)}))[0].answer == "b"


def test_other_names_of_known_layouts(images: Path, shade: Callable, jsonl: Callable) -> None:
    turns = [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]
    texts = [{"user": "a", "assistant": "b", "source": "x"}, {"user": "c", "assistant": "d"}]
    tiger, cauldron = Pool.open(
        jsonl({"conversation": turns, "images": ["pics/2.png"]}, {"texts": texts, "images": ["pics/1.png"]})
    ).read(range(2))
    assert isinstance(tiger[1], Sample)
    assert isinstance(cauldron[1], Sample)
    assert shade(tiger[1].images[0]) == 2
    assert [turn.text for turn in cauldron[1].turns] == ["<image>\na", "b", "c", "d"]
    assert [turn.trained for turn in cauldron[1].turns] == [False, True, False, True]


def test_boxes_that_are_not_read_are_refused_by_name(images: Path, jsonl: Callable, chat: Callable) -> None:
    bad = rejected(jsonl(chat("<image>Find it", "<bbox>", image="pics/0.png", objects={"bbox": [[1, 2, 3, 4]]})))
    assert (bad.reason, bad.field) == ("unsupported_media", "objects")


def test_images_in_base64_of_any_spelling(shade: Callable, jsonl: Callable, chat: Callable, png: Callable) -> None:
    plain = base64.b64encode(png(3)).decode()
    lines = "\r\n".join(plain[k : k + 60] for k in range(0, len(plain), 60))
    spellings = [
        f"data:image/png;base64,{lines}",
        f"DATA:image/png;charset=utf-8;BASE64, {plain}",
        f"data:image/png;base64,{plain.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{plain.rstrip('=')}",
        f"data:;base64,{plain.replace('+', '-').replace('/', '_')}",
        plain,
        lines,
    ]
    pool = Pool.open(jsonl(*(chat(image=address) for address in spellings)))
    assert [shade(pool[k].images[0]) for k in range(len(pool))] == [3] * len(spellings)


def test_file_addresses(images: Path, shade: Callable, jsonl: Callable, chat: Callable, png: Callable) -> None:
    (images / "a b%.png").write_bytes(png(7))
    (images / "c%20d.png").write_bytes(png(8))
    named = [
        ((images / "a b%.png").as_uri(), 7),
        (f"file://localhost{images}/a%20b%25.png", 7),
        (f"file:{images}/a%20b%25.png", 7),
        ("file://a b%.png", 7),
        (f"FILE://{images}/c%20d.png", 8),
        ("c%20d.png", 8),
    ]
    pool = Pool.open(jsonl(*(chat(image=address) for address, _ in named)))
    assert [shade(pool[k].images[0]) for k in range(len(pool))] == [value for _, value in named]


def test_float_ids_are_whole_numbers_again(jsonl: Callable, chat: Callable) -> None:
    ids = [1.0, 2.5, None, float("nan"), 12345678901234567890]
    pool = Pool.open(jsonl(*(chat("q", str(n), id=id) for n, id in enumerate(ids))))
    found = [pool[n].id for n in range(len(ids))]
    assert [found[0], found[1], found[4]] == ["1", "2.5", "12345678901234567890"]
    assert len(set(found)) == 5
