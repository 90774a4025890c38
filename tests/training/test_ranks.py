"""Two ranks (gloo, CPU) whose parts of a step differ in kind train what one trains, copied (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from forks import run_script
from mixed_pool import write_mixed_pool
from tiny_families import FAMILIES

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import os
import sys
from pathlib import Path
import torch
import ostlight
from forks import on_ranks
import ostlight.training.fit as fitting
from ostlight.config.schema import Compute, Lora, Target, Training
from ostlight.data.pool import Pool
from ostlight.models.cost import StageCost
from ostlight.models.module import MultimodalModel
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool
from ostlight.training.weights import trained_weights
ostlight.configure_logging()
job = json.loads(Path(sys.argv[1]).read_text())
losses, seen = MultimodalModel.losses, []

def tight(model, batch):
    found = losses(model, batch)
    seen.append(batch)
    tight = int(os.environ.get("LOCAL_RANK", 0)) == job["tight_rank"] and len(seen) > job["plenty"]
    if tight and batch.labels.numel() > job["fits"] and len(batch) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    return found

def train():
    MultimodalModel.losses = tight
    fitting.take_flops = lambda: 10**15 * (1 + int(os.environ.get("LOCAL_RANK", 0)))
    lora = Lora(rank=2) if job["lora"] else None
    target = Target(path=job["model"], dtype="float64", lora=lora)
    training = Training(batch_size=4, lr=1e-3, order="utility_descending", clip=job["clip"])
    model = MultimodalModel.load(target, "target", training)
    data = EncodedPool(Pool.open(job["pool"]), job["positions"], model.encoder)
    compute = Compute(
        accelerator="cpu", logger="none", progress=False, strategy=job["strategy"],
        devices=1 if job["strategy"] == "auto" else 2, tokens_per_batch=job["tokens_per_batch"],
    )
    checkpoints = Checkpoints(Path(job["out"]).with_suffix(".ckpt"), 0)
    cost = StageCost("train")
    entry = TrainingJob(compute, Path(job["out"]).parent, "train", checkpoints=checkpoints, shard=True)
    rejected = fit(model, data, entry, cost)
    weights = trained_weights(model)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        said = {"rejected": sorted(rejected), "more": cost.more, "start": checkpoints.start, "flops": cost.flops}
        torch.save(weights, job["out"])
        Path(job["out"]).with_suffix(".json").write_text(json.dumps(said))

sys.exit(not on_ranks(train, 1 if job["strategy"] == "auto" else 2))
"""


STEPS = {
    "one rank has images, the other text": [0, 16, 1, 17],
    "only text: the vision tower stays where it is": [18, 19, 20, 21],
    "the other way round": [22, 2, 23, 3],
    "images on both": [4, 5, 24, 6],
    "a rank without a usable record": [7, 32, 25, 33],
    "and one of text beside it": [34, 26, 35, 27],
    "no rank has one": [36, 37, 38, 39],
    "images once more": [8, 28, 9, 29],
    "a last step without anything for the second rank": [10],
}
POSITIONS = [position for step in STEPS.values() for position in step]
REJECTED = list(range(32, 40))


@pytest.fixture
def train(tmp_path: Path):
    pool = write_mixed_pool(tmp_path / "pool.parquet")

    def run(family: str, strategy: str, status: int | None = 0, **changed: Any) -> tuple[Any, Any, str]:
        folder = tmp_path / family
        if not folder.exists():
            tiny_families.save(family, folder)
        out = tmp_path / f"{family}-{strategy}.pt"
        job = {
            "model": str(folder), "pool": str(pool), "positions": POSITIONS, "strategy": strategy, "out": str(out),
            "tokens_per_batch": 10_000, "lora": False, "clip": 0.5, "fits": 10_000, "tight_rank": -1, "plenty": 0,
        }  # fmt: skip
        (tmp_path / "job.json").write_text(json.dumps(job | changed))
        (tmp_path / "script.py").write_text(SCRIPT)
        ended = run_script(tmp_path / "script.py", tmp_path / "job.json")
        if status is not None:
            assert ended.returncode == status, ended.stdout
        if ended.returncode:
            return None, None, ended.stdout
        return torch.load(out), json.loads(out.with_suffix(".json").read_text()), ended.stdout

    return run


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama", "idefics3", "qwen3_vl_moe"])
def test_ranks_that_differ_in_kind_train_what_one_trains(train, family: str):
    assert FAMILIES[family].text_alone
    one, told, _ = train(family, "auto")
    assert told["rejected"] == REJECTED
    for strategy in ("ddp", "fsdp"):
        two, told, _ = train(family, strategy)
        assert told["rejected"] == REJECTED
        assert round(told["flops"], -15) == 3e15, "of the vision features, what each rank has computed"
        assert furthest(one, two) < 1e-9, strategy


def test_adapters_and_uneven_micro_batches(train):
    changed: dict[str, Any] = {"lora": True, "tokens_per_batch": 40, "clip": None}
    one, _, _ = train("qwen2_5_vl", "auto", **changed)
    for strategy in ("ddp", "fsdp"):
        two, _, _ = train("qwen2_5_vl", strategy, **changed)
        assert furthest(one, two) < 1e-9, strategy


def test_a_rank_out_of_memory_repeats_its_part_and_all_keep_to_its_limit(train):
    one, _, _ = train("qwen2_5_vl", "auto")
    two, told, printed = train("qwen2_5_vl", "ddp", tight_rank=1, fits=20)
    assert furthest(one, two) < 1e-9
    assert "out of memory on another rank" in told["more"]["out_of_memory"], "the first rank tells it"
    assert "out of memory on another rank: from here on a micro-batch has at most" in printed


def test_where_weights_are_sharded_memory_that_runs_out_ends_all_ranks_and_the_next_run_keeps_to_the_limit(train):
    one, _, _ = train("qwen2_5_vl", "auto")
    printed = ""
    for _ in range(6):  # each run that ends halves the limit
        two, told, printed = train("qwen2_5_vl", "fsdp", status=None, tight_rank=1, fits=20, plenty=2)
        if told is not None:
            break
        assert "run the same command again, it goes on from the last checkpoint" in printed
    assert told is not None, printed
    assert told["start"] > 0, "it goes on"
    assert furthest(one, two) < 1e-9
