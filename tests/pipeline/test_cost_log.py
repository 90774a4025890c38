"""What a stage cost is written down, whether it went well or not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ostlight.pipeline.cost_log import CostLog, total
from ostlight.pipeline.unfinished import BEAT_S, _created
from ostlight.selection.usage import Usage


def test_a_stage_is_timed_and_read_back(tmp_path: Path):
    cost_log = CostLog(tmp_path / "cost_log.jsonl", devices=4)
    with cost_log.stage("score", "ost") as entry:
        entry.tokens, entry.flops = 100, 2e9
    (read,) = cost_log.read()
    assert (read.stage, read.selector, read.tokens, read.flops) == ("score", "ost", 100, 2e9)
    assert read.device_s == pytest.approx(4 * read.wall_s)


def test_a_failed_stage_was_paid_for_too(tmp_path: Path):
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


def test_only_the_first_rank_writes(tmp_path: Path):
    with CostLog(tmp_path / "cost_log.jsonl", writes=False).stage("score"):
        pass
    assert not (tmp_path / "cost_log.jsonl").exists()


def test_what_a_selector_spends_in_a_stage_is_charged_to_it(tmp_path: Path):
    cost_log, usage = CostLog(tmp_path / "cost_log.jsonl"), Usage()
    usage.add(calls=5)
    with cost_log.stage("score", "judge", usage) as entry:
        entry.flops = 1e3
        usage.add(calls=2, tokens_in=30, tokens_out=4, price=0.5, flops=1e2)
    with cost_log.stage("pick", "judge", usage):
        usage.add(calls=1)
    score, pick = cost_log.read()
    assert (score.calls, score.tokens_in, score.tokens_out, score.price, score.flops) == (2, 30, 4, 0.5, 1.1e3)
    assert pick.calls == 1
    both = total([score, pick], ("score", "pick"))
    assert (both.calls, both.tokens_in, both.tokens_out) == (3, 30, 4)


def test_a_failed_stage_keeps_what_was_spent(tmp_path: Path):
    cost_log, usage = CostLog(tmp_path / "cost_log.jsonl"), Usage()

    def fails() -> None:
        with cost_log.stage("score", "judge", usage):
            usage.add(calls=7)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    (read,) = cost_log.read()
    assert (read.calls, read.more) == (7, {"failed": "KeyError"})
    assert not (tmp_path / "unfinished").exists()


def test_a_rank_that_fails_leaves_what_it_spent_to_the_first(tmp_path: Path):
    other, usage = CostLog(tmp_path / "cost_log.jsonl", writes=False), Usage()

    def fails() -> None:
        with other.stage("score", "judge", usage):
            usage.add(calls=7)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    (read,) = CostLog(tmp_path / "cost_log.jsonl").read()
    assert (read.stage, read.selector, read.calls, read.wall_s) == ("score", "judge", 7, 0.0)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from ostlight.pipeline.cost_log import CostLog
from ostlight.pipeline.unfinished import BEAT_S
from ostlight.selection.usage import Usage

usage = Usage()
with CostLog(Path(sys.argv[1])).stage("score", "judge", usage):
    usage.add(calls=3, price=0.25)
    time.sleep(2 * BEAT_S)
    print("paid", flush=True)
    time.sleep(60)
"""


def test_a_killed_stage_is_counted_once_it_is_dead(tmp_path: Path):
    path = tmp_path / "cost_log.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "paid\n"
    assert CostLog(path).read() == [], "a stage that still runs is not written off"
    process.kill()
    process.communicate()
    with CostLog(path).stage("score", "judge") as entry:
        entry.calls = 4
    killed, resumed = CostLog(path).read()
    assert (killed.calls, killed.price, killed.more) == (3, 0.25, {"failed": "killed"})
    assert killed.wall_s == pytest.approx(2 * BEAT_S, abs=1.5 * BEAT_S)
    assert total([killed, resumed], ("score",)).calls == 7


def test_the_folder_of_what_is_unfinished_may_vanish_at_any_moment(tmp_path: Path):
    folder, over = tmp_path / "unfinished", threading.Event()

    def clear() -> None:
        while not over.is_set():
            with suppress(OSError):
                folder.rmdir()  # as a process that finds it empty

    others = threading.Thread(target=clear)
    others.start()
    try:
        for n in range(2000):
            os.close(_created(folder / f".{n}"))
            (folder / f".{n}").unlink()
    finally:
        over.set()
        others.join()
