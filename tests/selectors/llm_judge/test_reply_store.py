"""Replies stored on disk."""

from __future__ import annotations

import pytest

from ostlight_selectors.llm_judge.reply import Reply
from ostlight_selectors.llm_judge.reply_store import ReplyStore

STORED = Reply('{"score": 4}\nüé', None, "stop", {"4": -0.1}, 7, 3)


def never() -> Reply:
    raise AssertionError("asked twice")


def test_a_reply_outlives_its_process_whatever_the_rank(tmp_path):
    assert ReplyStore(tmp_path, 0).get("a", lambda: STORED) == STORED
    other = ReplyStore(tmp_path, 1)
    assert other.get("a", never) == STORED
    other.get("b", lambda: Reply("b"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["replies-000.jsonl", "replies-001.jsonl"]
    assert ReplyStore(tmp_path, 0).get("b", never) == Reply("b")


def test_a_line_cut_in_half_is_asked_again_and_harms_no_other(tmp_path):
    replies = ReplyStore(tmp_path, 0)
    for name in "abc":
        replies.get(name, lambda name=name: Reply(name * 50))
    file = tmp_path / "replies-000.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = ReplyStore(tmp_path, 0)
    assert len(again) == 2
    assert again.get("c", lambda: Reply("anew")) == Reply("anew")
    last = ReplyStore(tmp_path, 0)
    assert [last.get(name, never).text[:4] for name in "abc"] == ["aaaa", "bbbb", "anew"]


def test_a_failure_is_not_kept(tmp_path):
    replies = ReplyStore(tmp_path, 0)
    with pytest.raises(OSError, match="gone"):
        replies.get("a", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert replies.get("a", lambda: STORED) == STORED
