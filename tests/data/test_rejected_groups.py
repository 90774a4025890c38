"""Rejected records by reason, and fields that look like media and are not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ostlight.data.pool import Pool
from ostlight.data.quarantine import Row
from ostlight.data.reasons import CURES, EXAMPLES, group_by_reason
from ostlight.data.unread import unread_media

ROOT = Path(__file__).parents[2]


def rejected(position: int, reason: str, stage: str = "score", detail: str = "what") -> Row:
    return Row(position, f"id{position}", "/data/pool.jsonl", position + 1, "images", reason, detail, stage)


def test_groups_have_counts_three_examples_and_a_cure() -> None:
    rows = [rejected(n, "missing_image") for n in range(5)] + [rejected(9, "bad_json", detail="\x1b[31mred\n" * 100)]
    rows += [rejected(2, "no_vision", "train")]  # of a later stage: counted once, by its first reason
    groups = group_by_reason(reversed(rows))
    assert [(g.reason, g.count, len(g.examples)) for g in groups] == [
        ("missing_image", 5, EXAMPLES),
        ("bad_json", 1, 1),
    ]
    assert [row.position for row in groups[0].examples] == [0, 1, 2]
    assert groups[0].cure == CURES["missing_image"]
    assert len(groups[0].lines()) == 5
    assert "pool.jsonl:record 1 (id id0): images: what" in groups[0].lines()[1]
    assert "\x1b" not in "".join(groups[1].lines())
    assert max(map(len, groups[1].lines())) < 400
    assert groups == group_by_reason(rows)


def test_every_reason_of_the_readers_has_a_cure() -> None:
    code = "\n".join(p.read_text() for p in (ROOT / "ostlight" / "data").rglob("*.py"))
    reasons = set(re.findall(r'(?:BadRecord|rejecting)\(\s*f?"([a-z_]+)"', code))
    assert len(reasons) > 15
    assert sorted(reasons - set(CURES)) == []


def test_what_looks_like_media_and_is_not_read_is_counted(images: Path, jsonl: Callable, chat: Callable) -> None:
    pool = Pool.open(
        jsonl(
            chat("q", "a", file_name="x.jpg"),
            chat("q", "a", objects={"bbox": [[1, 2, 3, 4]]}, file_name="y.png"),
            chat("<video>\nq <image_1>", "see <img>"),
            chat(image="pics/0.png", images=["pics/1.png"]),
            chat(image="pics/0.png", images=["pics/0.png"], source="web", image_id=7, objects=[]),
            chat("q", "a", photo={"bytes": None, "path": "x.png"}, depth=["d.tiff"]),
            chat("q", "", file_name="of a rejected record.png"),
        )
    )
    found = unread_media(pool)
    assert found.records == 7
    assert found.fields == Counter(
        {
            "file_name": 2, "objects": 1, "<video>": 1, "<image_1>": 1, "<img>": 1, "image beside images": 1,
            "photo": 1, "depth": 1,
        }
    )  # fmt: skip
    assert "file_name (2)" in str(found)


def test_what_is_read_is_not_counted(images: Path, jsonl: Callable, chat: Callable) -> None:
    pool = Pool.open(jsonl(chat(image="pics/0.png", source="web"), {"question": "q", "answer": "a", "image": None}))
    assert unread_media(pool).fields == Counter()


@pytest.mark.parametrize(
    ("changed", "name"),
    [({}, "pool.jsonl:record 12 (id a)"), ({"id": None}, "pool.jsonl:record 12"), ({"file": "", "id": None}, "#11")],
)
def test_a_record_has_the_same_name_in_all_messages(changed: dict[str, str | None], name: str):
    row = Row(11, "a", "/data/pool.jsonl", 12, None, "empty_answer", "", "score")
    assert replace(row, **changed).name == name
