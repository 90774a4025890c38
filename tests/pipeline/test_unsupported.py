"""What becomes of records of media that the proxy cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import ostlight
from ostlight.config import load_config
from ostlight.data.formats import open_source
from ostlight.data.pool import Pool
from ostlight.data.subset import write_subset
from ostlight.errors import ConfigError, DataError
from ostlight.reporting.finished_run import open_scored
from ostlight.reporting.score_columns import ScoreColumns

READABLE, VIDEOS = 20, 10


def write_pool(path: Path, readable: int = READABLE) -> Path:
    records = [{"id": f"text{k}", "question": "q?", "answer": "a" * (k + 1)} for k in range(readable)]
    records += [
        {"id": f"video{k}", "question": "<video>q?", "answer": "a", "videos": [f"{k}.mp4"]} for k in range(VIDEOS)
    ]
    records.append({"id": "broken", "question": "q?", "answer": ""})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(policy: str, budget: dict[str, Any], readable: int = READABLE) -> dict[str, Any]:
        pool = {"path": str(write_pool(tmp_path / "pool.jsonl", readable)), "unsupported": policy}
        return settings(pool=pool, selector={"name": "length"}, budget=budget)

    return make


def ids_of(selection: Any) -> list[str]:
    source = open_source(selection.folder.subset / "pool.jsonl")
    return [source.record(i)["id"] for i in range(len(source))]


@pytest.mark.parametrize(
    ("policy", "budget", "texts", "videos"),
    [
        ("reject", {"fraction": 0.5}, 10, 0),
        ("keep", {"fraction": 0.5}, 10, 10),
        ("keep", {"count": 4}, 4, 10),
        ("proportional", {"fraction": 0.5}, 10, 5),
        ("proportional", {"count": 12}, 8, 4),
        ("proportional", {"threshold": -1e9}, 20, 10),
    ],
)
def test_what_is_kept(config: Any, policy: str, budget: dict[str, Any], texts: int, videos: int, logged: Any) -> None:
    selection = ostlight.select(config(policy, budget))
    kept = ids_of(selection)
    assert sum(name.startswith("text") for name in kept) == texts
    assert sum(name.startswith("video") for name in kept) == selection.kept_unscored == videos
    assert len(selection.kept) + selection.dropped + sum(selection.rejected.values()) == READABLE + VIDEOS + 1
    assert selection.rejected.get("unsupported_media", 0) == VIDEOS - videos
    rows = pq.read_table(selection.folder.selection).to_pylist()
    assert {row["position"] for row in rows if row["kept"]} == set(selection.kept.tolist())
    assert all(row["score"] is None for row in rows[READABLE:])
    quarantined = pq.read_table(selection.folder.quarantine)["position"].to_pylist()
    assert not set(quarantined) & set(selection.kept.tolist())
    assert f"{VIDEOS} of 31 records (32%)" in logged()
    (shown,) = ScoreColumns.read(open_scored(selection.folder.path)).selections
    assert (shown.size, shown.unscored) == (texts + videos, videos)


def test_the_choice_goes_by_names(config: Any, tmp_path: Path) -> None:
    first = ids_of(ostlight.select(config("proportional", {"fraction": 0.5})))
    lines = (tmp_path / "pool.jsonl").read_text().splitlines()
    (tmp_path / "reversed" / "pool.jsonl").parent.mkdir()
    (tmp_path / "reversed" / "pool.jsonl").write_text("\n".join(reversed(lines)))
    changed = config("proportional", {"fraction": 0.5})
    changed["pool"]["path"], changed["name"] = str(tmp_path / "reversed" / "pool.jsonl"), "other"
    assert sorted(ids_of(ostlight.select(changed))) == sorted(first)


def test_a_pool_of_media_alone(config: Any) -> None:
    assert len(ostlight.select(config("proportional", {"fraction": 0.5}, readable=0) | {"name": "a"}).kept) == 5
    assert len(ostlight.select(config("keep", {"fraction": 0.5}, readable=0) | {"name": "b"}).kept) == VIDEOS
    with pytest.raises(DataError, match="no record is kept"):
        ostlight.select(config("reject", {"fraction": 0.5}, readable=0) | {"name": "c"})


def test_the_policy_is_of_the_pool_and_of_select_alone() -> None:
    with pytest.raises(ConfigError, match="unsupported"):
        load_config({"pool": {"path": "a"}, "anchors": {"path": "b", "unsupported": "keep"}})
    with pytest.raises(ConfigError, match="benchmark"):
        load_config(
            {
                "pool": {"path": "a", "unsupported": "keep"},
                "benchmark": {"selectors": [{"name": "random"}], "budgets": [{"count": 2}]},
            }
        )


def test_images_for_a_proxy_without_eyes_go_with_their_records(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    records = [{"question": "q?", "answer": "a", "image": "a.png"}, {"question": "q?", "answer": "a", "audio": "a.wav"}]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, records)))
    pool = Pool.open(tmp_path / "pool.jsonl")
    write_subset(pool, [0, 1], tmp_path / "subset", unread={0, 1})
    assert (tmp_path / "subset" / "a.png").is_file()
    assert len(Pool.open(tmp_path / "subset" / "pool.jsonl")) == 2
    with pytest.raises(DataError):
        write_subset(pool, [0, 1], tmp_path / "other")


def test_function_calls_that_the_proxys_template_leaves_out_go_by_the_same_policy(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, logged
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    turns = [{"role": "user", "content": "q?"}, calling, {"role": "tool", "content": "red"}]
    records = [{"id": f"call{k}", "messages": [*turns, {"role": "assistant", "content": "a"}]} for k in range(3)]
    records += [{"id": f"text{k}", "question": "q?", "answer": "a" * (k + 1)} for k in range(5)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for policy, kept in (("reject", 5), ("keep", 8)):
        pool = {"path": str(tmp_path / "pool.jsonl"), "unsupported": policy}
        given = settings(name=policy, pool=pool, selector={"name": "loss"}, budget={"fraction": 1.0})
        selection = ostlight.select(load_config(given))
        assert selection.rejected == ({"no_tools": 3} if policy == "reject" else {})
        assert len(ids_of(selection)) == kept
        assert "3 with function calls" in logged()
