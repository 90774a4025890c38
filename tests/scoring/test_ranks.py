"""Two ranks give the table one rank gives, and a killed run goes on with another number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from ostlight.scoring.writer import audit
from ostlight.selection.scores import read_shards

pytestmark = pytest.mark.slow
OPTIONS: dict[str, dict[str, Any]] = {
    "projected": {"estimator": "projected", "probes": 4, "eta": 0.05, "targets": "split"},
    "second_order": {"estimator": "second_order", "probes": 4, "eta": 0.05},
    "split": {"estimator": "second_order", "probes": 4, "eta": 0.05, "targets": "split"},
    "first_order": {"estimator": "first_order", "eta": 0.05},
    "forward_only": {"estimator": "first_order", "eta": 0.05, "backward": False},
    "exact": {"estimator": "exact", "eta": 0.05},
    "adam": {"estimator": "projected", "probes": 4, "eta": 1e-5, "optimizer": "adam"},
}


def command(settings: dict[str, Any], folder: Path, **compute: Any) -> list[str]:
    config = settings | {"compute": settings["compute"] | compute}
    file = folder / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "ostlight.cli", "select", str(file)]


def run(arguments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit: each of the 48 records has exactly one row" in done.stdout


def scores(runs: Path, name: str) -> list[float]:
    audit(runs / name / "scores", 48)
    return read_shards(runs / name / "scores")["score"].to_pylist()


def furthest(one: list[float], other: list[float]) -> float:
    middle = sorted(abs(v) for v in one)[len(one) // 2]
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / middle


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_give_the_same_table(settings, tmp_path: Path, name: str, dtype: str):
    runs, ost = tmp_path / "runs", {"name": "ost", "options": OPTIONS[name] | {"objective": "sample"}}
    precision, bound = {"float32": ("32-true", 1e-3), "float64": ("64-true", 1e-9)}[dtype]
    for called, ranks in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        config = settings(name=called, selector=ost)
        config["proxy"] |= {"dtype": dtype}
        run(command(config, tmp_path, shard_size=5, precision=precision, **ranks))
    assert furthest(scores(runs, "one"), scores(runs, "two")) < bound


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_killed_run_resumes_with_another_number_of_ranks(settings, tmp_path: Path, options: dict[str, Any]):
    runs, ost = tmp_path / "runs", {"name": "ost", "options": options | {"objective": "sample"}}
    run(command(settings(name="whole", selector=ost), tmp_path, shard_size=1))
    arguments = command(settings(name="killed", selector=ost), tmp_path, shard_size=1, devices=2, strategy="ddp")
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(list((runs / "killed" / "scores").glob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = set((runs / "killed" / "scores").glob("part-*.parquet"))
    assert 3 <= len(before) < 48, "the run was killed in the middle"
    written = {p: p.stat().st_mtime_ns for p in before}
    run(command(settings(name="killed", selector=ost), tmp_path, shard_size=1))
    assert {p: p.stat().st_mtime_ns for p in before} == written
    assert furthest(scores(runs, "whole"), scores(runs, "killed")) < 1e-3


def test_two_ranks_score_with_the_proxy_that_one_of_them_saved(settings, tmp_path: Path):
    runs, ost = tmp_path / "runs", {"name": "ost", "options": OPTIONS["second_order"] | {"objective": "sample"}}
    for name, compute in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        config = settings(name=name, selector=ost)
        config["proxy"] |= {"warmup": {"fraction": 0.5, "training": {"steps": 3, "batch_size": 8, "lr": 1e-4}}}
        run(command(config, tmp_path, shard_size=5, **compute))
    assert furthest(scores(runs, "one"), scores(runs, "two")) < 1e-2


def test_two_ranks_try_the_same_subsets_and_keep_the_same_one(settings, tmp_path: Path):
    """A trial trains on both ranks, each with its share of every batch."""
    options, found = OPTIONS["second_order"], {}
    for name, compute in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        config = settings(name=name, selector={"name": "ost", "options": options}, budget={"count": 8})
        run(command(config, tmp_path, shard_size=5, **compute))
        folder = tmp_path / "runs" / name
        noted = json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])["more"]["noted"]
        found[name] = noted["trial"], pq.read_table(folder / "selection.parquet")["kept"]
    (one, kept), (two, kept_by_two) = found["one"], found["two"]
    assert list(two["losses"]) == list(one["losses"])
    for name, losses in one["losses"].items():
        assert two["losses"][name] == pytest.approx(losses, rel=1e-2), name
    assert two["kept"] == one["kept"]
    assert kept_by_two == kept
