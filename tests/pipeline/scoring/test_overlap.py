"""Anchors that are also in the pool are found while it is scored, not in a pass of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

import ostlight
from ostlight.data import unread
from ostlight.data.pool import Pool
from ostlight.pipeline import unsupported
from ostlight.selection.registry import register
from ostlight.selection.selector import Selector

RECORDS = 200
SHARD = 20


def write(path: Path, questions: list[str]) -> str:
    records = [{"id": f"{path.stem}-{n}", "question": q, "answer": f"{q}!"} for n, q in enumerate(questions)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    compute = {"shard_size": SHARD, "progress": False, "logger": "none", "accelerator": "cpu", "workers": 0}
    return {
        "name": "run",
        "folder": str(tmp_path),
        "pool": {"path": write(tmp_path / "pool.jsonl", [f"question {n}" for n in range(RECORDS)])},
        "anchors": {"path": write(tmp_path / "anchors.jsonl", ["another", "question 150", "question 7"])},
        "test": {"path": write(tmp_path / "test.jsonl", ["unseen", "another"])},
        "selector": {"name": "length"},
        "compute": compute,
    }


@register("tests-by-anchors")
class ByAnchors(Selector):
    """Scores all alike; says that anchors go into it."""

    needs_anchors = True

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}


def test_all_anchors_among_the_records_are_named(config, logged):
    ostlight.select(config | {"selector": {"name": "tests-by-anchors"}})
    messages = logged()
    assert (
        "2 anchors also occur in the pool, as 2 records (anchor = record): anchors-1 = pool-150, anchors-2 = pool-7"
        in messages
    )
    assert "1 anchors also occur in the test set, as 1 record (anchor = record): anchors-0 = test-1" in messages


@register("tests-read-before")
class ReadBefore(Selector):
    """Notes how many records were read when it got its first batch."""

    counts: ClassVar[list[int]] = []
    read: ClassVar[list[int]] = []

    def score(self, batch: Any) -> dict[str, Any]:
        self.counts.append(len(self.read))
        return {"score": [0.0] * len(batch)}


def test_no_pass_over_the_pool_comes_before_the_first_score(config, monkeypatch):
    monkeypatch.setattr(unread, "MAX_RECORDS_READ", 5)
    monkeypatch.setattr(unsupported, "LOOKED_AT", 5)
    ReadBefore.counts.clear()
    ReadBefore.read.clear()
    own = Pool.__getitem__
    monkeypatch.setattr(Pool, "__getitem__", lambda pool, i: (ReadBefore.read.append(i), own(pool, i))[1])
    ostlight.select(config | {"selector": {"name": "tests-read-before"}})
    trusted, ahead = 3 + 2, 2 * SHARD  # anchors and test set; the loader is a batch ahead
    assert ReadBefore.counts[0] <= trusted + 5 + 5 + ahead


def test_a_score_that_no_anchor_goes_into_is_not_warned_of(config, logged):
    ostlight.select(config)
    assert "also occur in the pool" not in logged()
