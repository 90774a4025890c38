"""Two ranks (gloo, CPU) train what one trains, copied (DDP) or sharded (FSDP2), also where their shares are unequal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forks import run_script
from transformers import AutoModelForImageTextToText

import ostlight
from ostlight.pipeline.cost_log import CostLog

pytestmark = pytest.mark.slow


TRAIN_ALL = """
import sys
import ostlight
from forks import on_ranks
ostlight.configure_logging()
sys.exit(not on_ranks(lambda: list(map(ostlight.train, sys.argv[1:]))))
"""
KILL = """
import sys
import time
from pathlib import Path
import ostlight
from forks import on_ranks
from ostlight.training.checkpoints import Checkpoints
ostlight.configure_logging()
save = Checkpoints.on_train_batch_end

def save_and_wait(self, trainer, *rest):
    save(self, trainer, *rest)
    trainer.strategy.barrier()  # the file is there
    time.sleep(60)

Checkpoints.on_train_batch_end = save_and_wait
on_ranks(lambda: ostlight.train(sys.argv[1]), until=Path(sys.argv[2]).exists)
"""
"""The ranks wait after their first checkpoint, so that they are killed in the middle however fast the machine is."""


def run_apart(script: str, configs: list[dict[str, Any]], folder: Path, *arguments: Path) -> str:
    (folder / "script.py").write_text(script)
    files = [folder / f"{config['name']}.yaml" for config in configs]
    for file, config in zip(files, configs, strict=True):
        file.write_text(yaml.safe_dump(config))
    ended = run_script(folder / "script.py", *files, *arguments)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def run_here(config: dict[str, Any], logged: Callable[[], str]) -> str:
    ostlight.train(config)
    return logged()


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


def outcome(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("training kept")]


def test_two_ranks_train_what_one_trains(final, tmp_path: Path, logged):
    runs = tmp_path / "runs"
    on_two, printed = [], []
    for what, lora in (("full", None), ("lora", {"rank": 2})):
        for strategy in ("auto", "ddp", "fsdp"):
            config = final(f"{what}-{strategy}", strategy, lora=lora)
            select_all_but_one_usable(config)
            if strategy == "auto":
                printed += 2 * outcome(run_here(config, logged))
            else:
                on_two.append(config)
    assert outcome(run_apart(TRAIN_ALL, on_two, tmp_path)) == printed
    start = weights(Path(on_two[0]["target"]["path"]))
    for what in ("full", "lora"):
        one = weights(runs / f"{what}-auto" / "target")
        assert distance(one, start) > 0
        for strategy in ("ddp", "fsdp"):
            assert distance(one, weights(runs / f"{what}-{strategy}" / "target")) < 1e-3 * distance(one, start)
    for run in runs.iterdir():
        rejected = pq.read_table(run / "quarantine.parquet").to_pylist()
        assert [(q["position"], q["reason"], q["stage"]) for q in rejected] == [(5, "corrupt_image", "train")]


def test_shards_in_mixed_precision_with_blocks_computed_anew_train_near_full_precision_on_one(final, tmp_path, logged):
    alone, sharded = final("auto"), final("fsdp", "fsdp", gradient_checkpointing=True)
    sharded["compute"]["precision"] = "bf16-mixed"
    for config in (alone, sharded):
        select_all_but_one_usable(config)
    run_here(alone, logged)
    run_apart(TRAIN_ALL, [sharded], tmp_path)
    start, one, two = (
        weights(folder)
        for folder in (alone["target"]["path"], *(tmp_path / "runs" / n / "target" for n in ("auto", "fsdp")))
    )
    assert all(w.dtype == torch.float32 for w in two.values()), "mixed precision keeps full weights"
    assert 1e-3 < distance(one, two) / distance(one, start) < 0.5, "farther than two ranks' rounding, and near"


def test_two_ranks_stop_where_one_stops(final, tmp_path: Path, logged):
    runs = tmp_path / "runs"
    worse_in_the_end = {"epochs": 8, "batch_size": 4, "lr": 1e-3, "schedule": "constant"}
    alone, *on_two = (final(s, s, training=worse_in_the_end, patience=2) for s in ("auto", "ddp", "fsdp"))
    for config in (alone, *on_two):
        select_all_but_one_usable(config)
    printed = outcome(run_here(alone, logged))
    assert len(printed) == 1
    assert outcome(run_apart(TRAIN_ALL, on_two, tmp_path)) == 2 * printed
    seen = [e.samples for run in runs.iterdir() for e in CostLog(run / "cost_log.jsonl").read() if e.stage == "train"]
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] < 8 * 13, "stopped early"
    one, start = weights(runs / "auto" / "target"), weights(Path(alone["target"]["path"]))
    for strategy in ("ddp", "fsdp"):
        assert distance(one, weights(runs / strategy / "target")) < 1e-3 * distance(one, start)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_killed_ranks_go_on(final, tmp_path: Path, logged, strategy: str):
    runs = tmp_path / "runs"
    longer = {"epochs": 8, "batch_size": 4, "lr": 1e-3}
    config = final("killed", strategy, training=longer, checkpoint_minutes=0)
    config["target"]["name"] = "one"
    alone = final("whole", training=longer, checkpoint_minutes=0)
    for one in (config, alone):
        select_all_but_one_usable(one)
    run_here(alone, logged)
    run_apart(KILL, [config], tmp_path, runs / "killed" / "targets" / "one.ckpt")
    assert not (runs / "killed" / "target").exists(), "the training was killed in the middle"
    assert "resumes from step" in run_apart(TRAIN_ALL, [config], tmp_path)
    whole, resumed = weights(runs / "whole" / "target"), weights(runs / "killed" / "target")
    moved = distance(whole, weights(Path(config["target"]["path"])))
    assert distance(whole, resumed) < 1e-3 * moved
    entries = [e for e in CostLog(runs / "killed" / "cost_log.jsonl").read() if e.stage == "train"]
    assert [e.resumed for e in entries] == [True], "a killed process writes no line"
    assert 0 < entries[-1].samples < 8 * 13, "what came after the checkpoint"
