"""Every reason for which a record is rejected; one bad record never stops the rest."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord

GOOD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def turns(*turns: tuple[str, Any], **fields: Any) -> dict:
    return {"conversations": [{"from": who, "value": what} for who, what in turns], **fields}


def asked(content: Any, **turn: Any) -> dict:
    answer = {"role": "assistant", "content": "Yes."}
    return {"messages": [{"role": "user", "content": content, **turn}, answer]}


AB = ["pics/0.png", "pics/1.png"]


def shown(address: str) -> dict:
    return asked([{"type": "image_url", "image_url": {"url": address}}])


CASES: list[tuple[str, str | None, str, Any]] = [  # reason, field, a value that the detail names, record
    ("missing_image", "images", "'nowhere.png'", turns(("human", "<image>"), ("gpt", "x"), image="nowhere.png")),
    ("missing_image", "images[1]", "pics", turns(("gpt", "<image><image>"), image=["pics/0.png", "pics"])),
    ("image_outside_root", "images", "../secret", turns(("human", "<image>"), ("gpt", "x"), image="../secret.png")),
    ("image_outside_root", "images", "/etc", turns(("human", "<image>"), ("gpt", "x"), image="/etc/passwd")),
    ("image_outside_root", "images", "secret", turns(("human", "<image>"), ("gpt", "x"), image="link.png")),
    ("image_outside_root", "images", "secret", turns(("human", "<image>"), ("gpt", "x"), image="out/secret.png")),
    ("remote_image", "images", "https://x.org/a.png", shown("https://x.org/a.png")),
    ("corrupt_image", "images", "", shown("data:image/png;base64,!!")),
    ("image_count", "images", "1 <image> placeholders but 2", turns(("human", "<image>"), ("gpt", "x"), images=AB)),
    ("image_count", "images", "1 <image> placeholders but 0 images", turns(("human", "<image>"), ("gpt", "x"))),
    ("no_answer", None, "", turns(("human", "Hi"))),
    ("no_answer", None, "", {"instruction": "Say hi."}),
    ("no_answer", None, "", {"messages": [{"role": "assistant", "content": "Hi", "loss_weight": 0.0}]}),
    ("empty_answer", None, "turn 2 of 2", turns(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", " \n"))),
    ("empty_answer", None, "turn 1 of 1", {"instruction": "Say hi.", "output": ""}),
    ("bad_json", None, "{\"conversations\": [}", '{"conversations": [}'),
    ("bad_json", None, "[1, 2]", "[1, 2]"),
    ("bad_field", "id", "got list", {**GOOD, "id": [1]}),
    ("bad_field", "conversations", "str 'Hi'", {"conversations": "Hi"}),
    ("bad_field", "conversations[0]", "str 'Hi'", {"conversations": ["Hi"]}),
    ("bad_field", "conversations[0].value", "got int '3'", turns(("human", 3), ("gpt", "x"))),
    ("bad_field", "messages[0]", "", {"messages": [{"content": "x"}]}),
    ("bad_field", "messages[0].content[0]", "tool_calls", asked([{"type": "tool_calls", "value": "x"}])),
    ("bad_field", "messages[0].loss_weight", "0.5", asked("Hi", loss_weight=0.5)),
    ("bad_field", "messages[0].loss_weight", "1", asked("Hi", loss_weight=1)),
    ("bad_field", "output", "got list", {"instruction": "Say hi.", "output": ["x"]}),
    ("bad_field", "history[0]", "['a']", {"instruction": "Say hi.", "output": "x", "history": [["a"]]}),
    ("bad_field", "question", "None", {"question": None, "answer": "x"}),
    ("bad_field", "images", "got int", turns(("human", "<image>"), ("gpt", "x"), image=7)),
    ("bad_field", None, "query_text", {"query_text": "a", "reply_text": "b"}),
    ("bad_field", None, "'\\ud83d'", turns(("human", "Hi \ud83d"), ("gpt", "x"))),
    ("bad_field", None, "'\\udc00'", turns(("human", "Hi"), ("gpt", "x"), id="\udc00")),
    ("bad_field", "images", "", turns(("human", "<image>"), ("gpt", "x"), image="\ud83d.png")),
    ("image_count", "images", "but 0 images", turns(("human", "<image>"), ("gpt", "x"), image="")),
    ("missing_image", "images", "aaaa", turns(("human", "<image>"), ("gpt", "x"), image="a" * 5000)),
    ("bad_role", "conversations[0].from", "'narrator'", turns(("narrator", "Once"), ("gpt", "x"))),
    ("unsupported_media", "videos", "videos", turns(("human", "<video>"), ("gpt", "x"), videos=["a.mp4"])),
    ("unsupported_media", "messages[0].content[0]", "audio_url", asked([{"type": "audio_url", "value": "a.mp3"}])),
    ("unsupported_media", "messages[0].content[0]", "video", asked([{"type": "video", "video": "a.mp4"}])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "field", "value", "record"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_a_bad_record_is_rejected_with_its_reason_and_the_rest_goes_on(
    images: Path, png: Callable, jsonl: Callable, reason: str, field: str | None, value: str, record: Any
) -> None:
    outside = images / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png(9))
    root = images / "root"
    root.mkdir()
    (images / "pics").rename(root / "pics")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "out").symlink_to(outside)
    (images / "secret.png").write_bytes(png(9))

    pool = Pool.open(jsonl(GOOD, record, GOOD), image_root=root)
    (_, before), (position, bad), (_, after) = pool.read(range(3))

    assert isinstance(before, Sample)
    assert isinstance(after, Sample)
    assert position == 1
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.field) == (reason, field)
    assert value in bad.detail
    with pytest.raises(BadRecord) as raised:
        pool[1]
    assert raised.value.reason == reason


def test_a_later_record_with_a_used_id_names_both(jsonl: Callable, chat: Callable) -> None:
    first = jsonl(chat("a", "1", id="x"), chat("b", "2", id=7), name="a.jsonl")
    second = jsonl(chat("c", "3", id="y"), chat("d", "4", id="x"), chat("e", "5", id="7"), name="b.jsonl")
    pool = Pool.open([first, second], duplicates="first")
    found = dict(pool.read(range(5)))
    assert [s.id for s in found.values() if isinstance(s, Sample)] == ["x", "7", "y"]
    assert [b.reason for b in found.values() if isinstance(b, BadRecord)] == ["duplicate_id"] * 2
    assert "'x' at b.jsonl:record 2 was already used at a.jsonl:record 1" in str(found[3])
    assert "'7' at b.jsonl:record 3 was already used at a.jsonl:record 2" in str(found[4])


@pytest.mark.parametrize("cut", [0, 20, 45])
def test_a_corrupt_image_is_found_when_it_is_opened(images: Path, jsonl: Callable, chat: Callable, cut: int) -> None:
    whole = (images / "pics" / "0.png").read_bytes()
    (images / "pics" / "0.png").write_bytes(whole[:cut])
    sample = Pool.open(jsonl(chat(image="pics/0.png")))[0]
    with pytest.raises(BadRecord, match=r"pics/0\.png") as caught:
        sample.images[0].open()
    assert (caught.value.reason, caught.value.field) == ("corrupt_image", "images")


def test_an_image_gone_since_it_was_found_is_missing(images: Path, jsonl: Callable, chat: Callable) -> None:
    sample = Pool.open(jsonl(chat(image="pics/0.png")))[0]
    (images / "pics" / "0.png").unlink()
    with pytest.raises(BadRecord) as caught:
        sample.images[0].open()
    assert (caught.value.reason, caught.value.field) == ("missing_image", "images")


def test_an_unlabelled_pool_may_have_no_answers(shade: Callable, jsonl: Callable, png: Callable) -> None:
    address = "data:image/png;base64," + base64.b64encode(png(3)).decode()
    path = jsonl(
        turns(("human", "Hi")),
        {"instruction": "Say hi.", "output": ""},
        {"question": "Who?", "image": address},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
    )
    found = [s for _, s in Pool.open(path, require_answer=False).read(range(4))]
    assert [[t.role for t in s.turns] for s in found if isinstance(s, Sample)] == [["user"]] * 3
    assert isinstance(found[3], BadRecord)
    assert found[3].reason == "empty_answer"
    assert isinstance(found[2], Sample)
    assert shade(found[2].images[0]) == 3


def _anything(rng: random.Random, depth: int) -> Any:
    scalars = [
        None,
        True,
        0,
        1.0,
        -7,
        "",
        "user",
        "gpt",
        "text",
        "image",
        "<image>",
        "pics/0.png",
        "..",
        "\0",
        "data:,",
    ]
    kind = rng.randrange(4 if depth else 2)
    if kind < 2:
        return rng.choice(scalars)
    if kind == 2:
        return [_anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = [
        "id",
        "from",
        "value",
        "role",
        "content",
        "type",
        "text",
        "image",
        "url",
        "bytes",
        "path",
        "weight",
        "tags",
    ]
    return {name: _anything(rng, depth - 1) for name in rng.sample(names, rng.randrange(6))}


def test_whatever_a_record_holds_it_is_a_sample_or_a_reason(images: Path, jsonl: Callable) -> None:
    rng = random.Random(0)
    shapes = ["conversations", "messages", "instruction", "question"]
    records = [{rng.choice(shapes): _anything(rng, 4), **_object(rng)} for _ in range(3000)]
    pool = Pool.open(jsonl(GOOD, *records), duplicates="first")
    found = [record for _, record in pool.read(range(len(pool)))]
    assert len(found) == 3001
    reasons = Counter(record.reason for record in found if isinstance(record, BadRecord))
    assert set(reasons) >= {"bad_field", "no_answer", "duplicate_id"}

    unlabelled = Pool.open(pool.files, require_answer=False, duplicates="first")
    good = [record for _, record in unlabelled.read(range(len(unlabelled))) if isinstance(record, Sample)]
    assert all(sample.turns for sample in good)
    write_subset(unlabelled, [sample.position for sample in good], images / "subset")
    subset = Pool.open(images / "subset" / "pool.jsonl", require_answer=False, duplicates="first")
    assert [record.turns for _, record in subset.read(range(len(subset)))] == [s.turns for s in good]  # type: ignore[union-attr]


def _object(rng: random.Random) -> dict:
    names = ["id", "image", "images", "system", "input", "output", "answer", "history", "tags", "videos"]
    return {name: _anything(rng, 3) for name in rng.sample(names, rng.randrange(5))}
