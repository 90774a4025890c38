"""What a stage cost is written down, whether it went well or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostlight.run.ledger import Ledger, total


def test_a_stage_is_timed_and_read_back(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl", devices=4)
    with ledger.stage("score", "ost") as entry:
        entry.tokens, entry.flops = 100, 2e9
    (read,) = ledger.read()
    assert (read.stage, read.selector, read.tokens, read.flops) == ("score", "ost", 100, 2e9)
    assert read.device_s == pytest.approx(4 * read.wall_s)


def test_a_failed_stage_was_paid_for_too(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def fails() -> None:
        with ledger.stage("score") as entry:
            entry.samples = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    (read,) = ledger.read()
    assert read.more == {"failed": "KeyError"}
    assert read.samples == 3


def test_totals_add_up_over_the_named_stages(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for stage, tokens in (("warm-up", 1), ("score", 2), ("train", 4)):
        with ledger.stage(stage) as entry:
            entry.tokens = tokens
    assert total(ledger.read(), ("warm-up", "score")).tokens == 3


def test_only_the_first_rank_writes(tmp_path: Path):
    with Ledger(tmp_path / "ledger.jsonl", writes=False).stage("score"):
        pass
    assert not (tmp_path / "ledger.jsonl").exists()
