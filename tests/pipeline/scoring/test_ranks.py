"""Two ranks give the table one rank gives, and a killed run goes on with another number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from forks import run_script

import ostlight
from ostlight.pipeline.scoring.writer import audit
from ostlight.selection.scores import read_score_table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_samples_compared")]
TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
OPTIONS: dict[str, dict[str, Any]] = {
    "projected": {"step": "sgd", "estimator": "projected", "rank": 4, "step_size": 0.05, "vector_storage": "split"},
    "second_order": {"step": "sgd", "estimator": "second_order", "probes": 4, "step_size": 0.05},
    "split": {"step": "sgd", "estimator": "second_order", "probes": 4, "step_size": 0.05, "vector_storage": "split"},
    "first_order": {"step": "sgd", "estimator": "first_order", "step_size": 0.05},
    "forward_only": {"step_size": 0.05},
    "exact": {"step": "sgd", "estimator": "exact", "step_size": 0.05},
    "adam": {"estimator": "projected", "rank": 4, "step_size": 1e-5, "step": "adam"},
}


WHOLE = "audit: each of the 48 records has exactly one row"
SELECT_ALL = """
import sys
import ostlight
from forks import on_ranks
ostlight.configure_logging()
from ostlight_selectors import ost
ost.sample_count = lambda records: 4
sys.exit(not on_ranks(lambda: list(map(ostlight.select, sys.argv[1:]))))
"""
KILL_ALL = """
import sys
import time
from pathlib import Path
import ostlight
from forks import on_ranks
from ostlight.pipeline.scoring.writer import ShardWriter
ostlight.configure_logging()
from ostlight_selectors import ost
ost.sample_count = lambda records: 4
write = ShardWriter.write_on_batch_end

def shards(folder):
    return len(list(folder.glob("part-*.parquet")))

def write_and_wait(self, *args):
    write(self, *args)
    while shards(self.folder) >= 3:
        time.sleep(60)

ShardWriter.write_on_batch_end = write_and_wait
for file in map(Path, sys.argv[1:]):
    scores = file.parent / "runs" / file.stem / "scores"
    on_ranks(lambda: ostlight.select(file), until=lambda: shards(scores) >= 3)
"""
"""Every run is killed once it has three shards, after which its ranks write no more."""


def write(settings: dict[str, Any], folder: Path, **compute: Any) -> Path:
    file = folder / f"{settings['name']}.yaml"
    file.write_text(yaml.safe_dump(settings | {"compute": settings["compute"] | compute}))
    return file


def run_here(file: Path, logged: Callable[[], str]) -> None:
    ostlight.select(file)
    assert WHOLE in logged()


def run_apart(script: str, files: list[Path]) -> str:
    file = files[0].parent / "script.py"
    file.write_text(script)
    ended = run_script(file, *files)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def select_on_two(files: list[Path]) -> None:
    printed = run_apart(SELECT_ALL, files)
    assert printed.count(WHOLE) >= len(files), printed


def scores(runs: Path, name: str) -> list[float]:
    audit(runs / name / "scores", 48)
    return read_score_table(runs / name / "scores")["score"].to_pylist()


def furthest(one: list[float], other: list[float]) -> float:
    middle = sorted(abs(v) for v in one)[len(one) // 2]
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / middle


def test_two_ranks_give_the_same_table(settings, tmp_path: Path, logged):
    """In float64, so that nothing but rounding may differ; the killed runs below are in float32."""
    on_two = []
    for name, options in OPTIONS.items():
        ost = {"name": "ost", "options": options}
        for called, ranks in ((f"{name}-one", {}), (f"{name}-two", TWO)):
            config = settings(name=called, selector=ost)
            config["proxy"] |= {"dtype": "float64"}
            file = write(config, tmp_path, shard_size=5, precision="64-true", **ranks)
            if ranks:
                on_two.append(file)
            else:
                run_here(file, logged)
    select_on_two(on_two)
    runs = tmp_path / "runs"
    apart = {name: furthest(scores(runs, f"{name}-one"), scores(runs, f"{name}-two")) for name in OPTIONS}
    assert max(apart.values()) < 1e-9, apart


@pytest.mark.timeout(600)
def test_killed_runs_resume_with_another_number_of_ranks(settings, tmp_path: Path, logged):
    runs, killed = tmp_path / "runs", {}
    for name, options in OPTIONS.items():
        ost = {"name": "ost", "options": options}
        run_here(write(settings(name=f"{name}-whole", selector=ost), tmp_path, shard_size=3), logged)
        killed[name] = write(settings(name=f"{name}-killed", selector=ost), tmp_path, shard_size=3, **TWO)
    printed = run_apart(KILL_ALL, list(killed.values()))
    for name, options in OPTIONS.items():
        ost = {"name": "ost", "options": options}
        before = set((runs / f"{name}-killed" / "scores").glob("part-*.parquet"))
        assert 3 <= len(before) < 16, f"{name} was killed in the middle: {printed}"
        written = {p: p.stat().st_mtime_ns for p in before}
        run_here(write(settings(name=f"{name}-killed", selector=ost), tmp_path, shard_size=3), logged)
        assert {p: p.stat().st_mtime_ns for p in before} == written
        assert furthest(scores(runs, f"{name}-whole"), scores(runs, f"{name}-killed")) < 1e-3, name


def test_two_ranks_score_with_the_proxy_that_one_of_them_saved(settings, tmp_path: Path, logged):
    runs, ost = tmp_path / "runs", {"name": "ost", "options": OPTIONS["second_order"]}
    files = {}
    for name, compute in (("one", {}), ("two", TWO)):
        config = settings(name=name, selector=ost)
        config["proxy"] |= {"warmup": {"fraction": 0.5, "training": {"steps": 3, "batch_size": 8, "lr": 1e-4}}}
        files[name] = write(config, tmp_path, shard_size=5, **compute)
    run_here(files["one"], logged)
    select_on_two([files["two"]])
    assert furthest(scores(runs, "one"), scores(runs, "two")) < 1e-2


def test_two_ranks_try_the_same_subsets_and_keep_the_same_one(settings, tmp_path: Path, logged):
    """A trial trains on both ranks, each with its share of every batch."""
    ranking = {"name": "ost", "options": OPTIONS["second_order"]}
    as_set = {"name": "ost", "options": OPTIONS["second_order"] | {"selection": "set"}, "label": "set"}
    candidates = [ranking, {"name": "random"}, {"name": "loss"}, as_set]
    options, files, found = {"candidates": candidates, "steps": 2}, {}, {}
    for name, compute in (("one", {}), ("two", TWO)):
        config = settings(name=name, selector={"name": "best_of", "options": options}, budget={"count": 8})
        files[name] = write(config, tmp_path, shard_size=5, **compute)
    run_here(files["one"], logged)
    select_on_two([files["two"]])
    for name in files:
        folder = tmp_path / "runs" / name
        noted = json.loads((folder / "cost_log.jsonl").read_text().splitlines()[-1])["more"]["noted"]
        found[name] = noted["best_of"], pq.read_table(folder / "selection.parquet")["kept"]
    (one, kept), (two, kept_by_two) = found["one"], found["two"]
    assert list(two["losses"]) == list(one["losses"])
    for name, losses in one["losses"].items():
        assert two["losses"][name] == pytest.approx(losses, rel=1e-2), name
    assert two["selected"] == one["selected"]
    assert kept_by_two == kept
