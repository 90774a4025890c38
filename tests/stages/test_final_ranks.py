"""Two ranks (gloo, CPU) train what one trains, copied (DDP) or sharded (FSDP2), also where their shares are unequal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

import ostlight
from ostlight.run.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # four processes that start torch
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(verb: str, config: dict[str, Any], folder: Path) -> list[str]:
    file = folder / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "ostlight.cli", verb, str(file)]


def run(verb: str, config: dict[str, Any], folder: Path) -> str:
    done = subprocess.run(
        command(verb, config, folder), capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[n].double() - other[n].double()).square().sum()) for n in one) ** 0.5


@pytest.fixture
def final(settings, digits, tmp_path: Path):
    """A selection of 13 with one record the target refuses, so that the last step has a rank with nothing to do."""

    def make(name: str, strategy: str = "auto", **target: Any) -> dict[str, Any]:
        config = settings(name=name, dev={"path": str(digits.dev)})
        training = {"epochs": 2, "batch_size": 4, "lr": 1e-3}
        config["target"] |= {"training": training, "patience": None, **target}
        config["budget"] = {"count": 13}
        config["pool"] = {"path": str(tmp_path / "pool.parquet")}
        config["compute"] |= {"tokens_per_batch": 64, "strategy": strategy, "devices": 1 if strategy == "auto" else 2}
        rows = pq.read_table(digits.pool).to_pylist()
        rows[5]["image"] = {"bytes": b"no picture", "path": None}
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), tmp_path / "pool.parquet")
        return config

    return make


def select_all_but_one_usable(config: dict[str, Any]) -> None:
    """``random`` does not open pictures, so the broken one can be among the kept; make sure it is."""
    ostlight.select(config | {"compute": config["compute"] | {"devices": 1, "strategy": "auto"}})
    file = Path(config["folder"]) / config["name"] / "selection.parquet"
    rows = pq.read_table(file).to_pylist()
    dropped = next(r for r in rows if r["rank"] == 12)
    wanted = next(r for r in rows if r["position"] == 5)
    if not wanted["kept"]:
        wanted |= {"kept": True, "rank": 12}
        dropped |= {"kept": False, "rank": None}
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(file)), file)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_two_ranks_train_what_one_trains(final, tmp_path: Path, strategy: str, lora: dict[str, int] | None):
    runs = tmp_path / "runs"
    told = {}
    for name, how in (("one", "auto"), ("two", strategy)):
        config = final(name, how, lora=lora)
        select_all_but_one_usable(config)
        told[name] = run("train", config, tmp_path)
    start = weights(Path(config["target"]["path"]))
    one, two = weights(runs / "one" / "target"), weights(runs / "two" / "target")
    assert distance(one, start) > 0
    assert distance(one, two) < 1e-3 * distance(one, start)
    for name in ("one", "two"):
        aside = pq.read_table(runs / name / "quarantine.parquet").to_pylist()
        assert [(q["position"], q["reason"], q["stage"]) for q in aside] == [(5, "corrupt_image", "train")]
    lines = {n: next(x for x in t.splitlines() if x.startswith("training kept")) for n, t in told.items()}
    assert lines["one"] == lines["two"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_killed_ranks_go_on(final, tmp_path: Path, strategy: str):
    runs = tmp_path / "runs"
    longer = {"epochs": 8, "batch_size": 4, "lr": 1e-3}
    for name in ("whole", "killed"):
        select_all_but_one_usable(final(name, strategy, training=longer, checkpoint_minutes=0))
    run("train", final("whole", strategy, training=longer, checkpoint_minutes=0), tmp_path)
    config = final("killed", strategy, training=longer, checkpoint_minutes=0)
    process = subprocess.Popen(
        command("train", config, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (runs / "killed" / "checkpoint.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (runs / "killed" / "target").exists(), "the training was killed in the middle"
    assert "goes on from step" in run("train", config, tmp_path)
    whole, resumed = weights(runs / "whole" / "target"), weights(runs / "killed" / "target")
    moved = distance(whole, weights(Path(config["target"]["path"])))
    assert distance(whole, resumed) < 1e-3 * moved
    entries = [e for e in Ledger(runs / "killed" / "ledger.jsonl").read() if e.stage == "train"]
    assert [e.more.get("failed") for e in entries] == ["killed", "killed", None], "a line for each killed rank"
    assert entries[-1].resumed
    assert 0 < entries[-1].samples < 8 * 13, "what came after the checkpoint"
    assert max(e.wall_s for e in entries[:-1]) > 0
