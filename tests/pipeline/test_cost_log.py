"""The cost log: what a stage cost is written, also where the stage fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostlight.models.cost import StageCost
from ostlight.pipeline.cost_log import CostLog, selection_cost, total
from ostlight.selection.usage import Usage


def test_a_stage_is_timed_and_read_back(tmp_path: Path):
    cost_log = CostLog(tmp_path / "cost_log.jsonl", devices=4)
    with cost_log.stage("score", "ost") as entry:
        entry.tokens, entry.flops = 100, 2e9
    (read,) = cost_log.read()
    assert (read.stage, read.selector, read.tokens, read.flops) == ("score", "ost", 100, 2e9)
    assert read.device_s == pytest.approx(4 * read.wall_s)


def test_a_failed_stage_is_written_with_its_error(tmp_path: Path):
    cost_log = CostLog(tmp_path / "cost_log.jsonl")

    def fails() -> None:
        with cost_log.stage("score") as entry:
            entry.samples = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    (read,) = cost_log.read()
    assert read.more == {"failed": "KeyError"}
    assert read.samples == 3


def test_totals_add_up_over_the_named_stages(tmp_path: Path):
    cost_log = CostLog(tmp_path / "cost_log.jsonl")
    for stage, tokens in (("warm-up", 1), ("score", 2), ("train", 4)):
        with cost_log.stage(stage) as entry:
            entry.tokens = tokens
    assert total(cost_log.read(), ("warm-up", "score")).tokens == 3


def test_a_resumed_scoring_is_charged_one_setup():
    """Ten seconds and 100 FLOPs of setup; one second and 7 FLOPs a record, on two devices."""
    setup = {"setup_s": 10.0, "setup_flops": 100}
    attempts = [
        StageCost("score", "ost", 10 + n, 2 * (10 + n), 100 + 7 * n, samples=n, more=dict(setup)) for n in (6, 4)
    ]
    attempts.append(StageCost("score", "ost", more={"waited_for_data": 0.5}))  # nothing was usable, nor set up
    cost = selection_cost([], attempts, StageCost("select"), 10)
    assert (cost.wall_s, cost.device_s, cost.flops) == (20, 40, 170)


def test_only_the_first_rank_writes(tmp_path: Path):
    with CostLog(tmp_path / "cost_log.jsonl", writes=False).stage("score"):
        pass
    assert not (tmp_path / "cost_log.jsonl").exists()


def test_what_a_selector_uses_during_a_stage_is_charged_to_it(tmp_path: Path):
    cost_log, usage = CostLog(tmp_path / "cost_log.jsonl"), Usage()
    usage.add(calls=5)
    with cost_log.stage("score", "judge", usage) as entry:
        entry.flops = 1e3
        usage.add(calls=2, tokens_in=30, tokens_out=4, price=0.5, flops=1e2)
    with cost_log.stage("select", "judge", usage):
        usage.add(calls=1)
    score, select = cost_log.read()
    assert (score.calls, score.tokens_in, score.tokens_out, score.price, score.flops) == (2, 30, 4, 0.5, 1.1e3)
    assert select.calls == 1
    both = total([score, select], ("score", "select"))
    assert (both.calls, both.tokens_in, both.tokens_out) == (3, 30, 4)


def test_a_failed_stage_is_charged_what_the_selector_used(tmp_path: Path):
    cost_log, usage = CostLog(tmp_path / "cost_log.jsonl"), Usage()

    def fails() -> None:
        with cost_log.stage("score", "judge", usage):
            usage.add(calls=7)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    (read,) = cost_log.read()
    assert (read.calls, read.more) == (7, {"failed": "KeyError"})


def test_damaged_lines_are_left_out_and_counted(tmp_path, logged):
    costs = CostLog(tmp_path / "cost_log.jsonl")
    costs.add(StageCost("score", samples=3))
    with costs.path.open("ab") as file:
        file.write(b'{"stage": "tra')
    costs.add(StageCost("evaluate", samples=4))
    with costs.path.open("ab") as file:
        file.write(b"\xff\xfe\x00\n[1]\nnull\n")
    assert [(cost.stage, cost.samples) for cost in costs.read()] == [("score", 3), ("evaluate", 4)]
    assert "4 lines are damaged" in logged()
