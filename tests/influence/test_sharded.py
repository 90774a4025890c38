"""A model sharded over two ranks (FSDP2, gloo) scores as it does whole, also where ranks have different batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forks import run_script

from ostlight.influence import UtilityScorer

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import os
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from forks import on_ranks
from ostlight.errors import InfluenceError
from ostlight.influence import UtilityScorer

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from of_the_test import batches, model


def score():
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    sharded = model()
    for block in sharded.model.layers:
        fully_shard(block)
    fully_shard(sharded)
    anchors, pool = batches(0, 2), batches(1, 4)
    given = {"step_size": 0.01, "calibration": pool[:1], "parameters": "all"}
    before = [parameter.to_local().clone() for parameter in sharded.parameters()]
    scorer = UtilityScorer(sharded, anchors, estimator="finite_difference", **given)
    own = pool[:3] if rank == 0 else pool[3:]
    scores = [scorer(batch) for batch in own]
    scorer.close()
    assert all(torch.equal(one, other.to_local()) for one, other in zip(before, sharded.parameters()))
    said = {name: torch.cat([getattr(s, name) for s in scores]).tolist() for name in ("utility", "loss")}
    said["elements"] = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    try:
        UtilityScorer(sharded, anchors, estimator="first_order", step_size=0.01, parameters="all")
    except InfluenceError as error:
        said["refused"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(said))


sys.exit(not on_ranks(score))
"""
MODULE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, attn_implementation="eager",
    )
    return LlamaForCausalLM(config).double().eval()


def batches(seed, count):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        ids = torch.randint(0, 61, (3, 7 + k), generator=generator)
        made.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    return made
"""


def test_a_sharded_model_scores_as_a_whole_one(tmp_path: Path):
    (tmp_path / "of_the_test.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_script(tmp_path / "script.py", tmp_path)
    assert ended.returncode == 0, ended.stdout
    here: dict = {}
    exec(MODULE, here)
    whole, anchors, pool = here["model"](), here["batches"](0, 2), here["batches"](1, 4)
    given = {"step_size": 0.01, "parameters": "all"}
    same = UtilityScorer(whole, anchors, estimator="finite_difference", calibration=pool[:1], **given)
    exact = UtilityScorer(whole, anchors, estimator="first_order", **given)
    elements = 0
    for rank, own in enumerate((pool[:3], pool[3:])):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        utility = torch.tensor(said["utility"], dtype=torch.float64)
        by_differences = torch.cat([same(batch).utility for batch in own])
        by_gradients = torch.cat([exact(batch).utility for batch in own])
        scale = by_gradients.abs().median()
        assert float((utility - by_differences).abs().max() / scale) < 1e-8
        assert float((utility - by_gradients).abs().max() / scale) < 1e-2, "the difference's own error"
        assert torch.allclose(torch.tensor(said["loss"]).double(), torch.cat([same(b).loss for b in own]), rtol=1e-6)
        assert "estimator=finite_difference" in said["refused"]
        elements += said["elements"]
    assert elements == sum(parameter.numel() for parameter in whole.parameters()), "each holds its part"
