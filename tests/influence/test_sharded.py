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
from of_the_test import batches, model, step


def score():
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    sharded = model()
    for block in sharded.model.layers:
        fully_shard(block)
    fully_shard(sharded)
    anchors, pool = batches(0, 2), batches(1, 4)
    before = [parameter.to_local().clone() for parameter in sharded.parameters()]
    said = {"elements": sum(part.numel() for part in before)}
    for kind in ("sgd", "adam", "kfac", "ekfac"):
        for cached in (False, True) if kind == "kfac" else (False,):
            given = step(sharded, kind, pool, folder / "cache")
            said[kind] = {"step_size": given["step_size"], "factors": getattr(given["preconditioner"], "nbytes", 0)}
            scorer = UtilityScorer(
                sharded, anchors, estimator="finite_difference", parameters="all", calibration=pool[:1], **given
            )
            scores = [scorer(batch) for batch in (pool[:3] if rank == 0 else pool[3:])]
            scorer.close()
            for name in ("utility", "loss"):
                said[kind][name] = torch.cat([getattr(s, name) for s in scores]).tolist()
    said["cached"] = len(list((folder / "cache").iterdir()))
    assert all(torch.equal(one, other.to_local()) for one, other in zip(before, sharded.parameters()))
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
from ostlight.influence import CausalLM, adam_preconditioner, kronecker_preconditioner, median_step_size
from ostlight.influence.anchors import Anchors
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import anchor_second_moments


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, attn_implementation="eager", attention_bias=True,
        tie_word_embeddings=True,
    )
    made = LlamaForCausalLM(config).double().eval()
    made.register_parameter("of_no_use", torch.nn.Parameter(torch.zeros(1, 3, dtype=torch.float64)))
    return made


def batches(seed, count):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        ids = torch.randint(0, 61, (3, 7 + k), generator=generator)
        made.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    return made


def step(model, kind, pool, cache):
    parameters, task = select_parameters(model, "all"), CausalLM()
    singles = [single for batch in pool for single in task.singles(batch)]
    step = None
    if kind == "adam":
        step = adam_preconditioner(parameters, anchor_second_moments(model, parameters, Anchors(batches(0, 2))))
    elif kind != "sgd":
        step = kronecker_preconditioner(model, task, parameters, singles, kind, cache=cache)
    return {"step_size": median_step_size(model, parameters, pool, 0.1, preconditioner=step), "preconditioner": step}
"""


def test_a_sharded_model_scores_as_a_whole_one(tmp_path: Path):
    (tmp_path / "of_the_test.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_script(tmp_path / "script.py", tmp_path)
    assert ended.returncode == 0, ended.stdout
    here: dict = {}
    exec(MODULE, here)
    whole, anchors, pool = here["model"](), here["batches"](0, 2), here["batches"](1, 4)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for kind in ("sgd", "adam", "kfac", "ekfac"):
        given = here["step"](whole, kind, pool, None)
        scorers = [
            UtilityScorer(whole, anchors, estimator=name, parameters="all", calibration=pool[:1], **given)
            for name in ("finite_difference", "first_order")
        ]
        by_differences, by_gradients = ([scorer(batch) for batch in pool] for scorer in scorers)
        utility = torch.tensor([u for said in ranks for u in said[kind]["utility"]], dtype=torch.float64)
        losses = torch.tensor([u for said in ranks for u in said[kind]["loss"]], dtype=torch.float64)
        expected, exact = (torch.cat([one.utility for one in scores]) for scores in (by_differences, by_gradients))
        scale = exact.abs().median()
        tolerance = 1e-6 if kind == "adam" else 1e-8  # second moments are in float32
        assert float((utility - expected).abs().max() / scale) < tolerance, kind
        assert float((utility - exact).abs().max() / scale) < 3e-2, "the difference's own error"
        assert torch.allclose(losses, torch.cat([one.loss for one in by_differences]), rtol=1e-6)
        assert [said[kind]["step_size"] for said in ranks] == pytest.approx([given["step_size"]] * 2, rel=1e-7)
        factors = [said[kind]["factors"] for said in ranks]
        assert sum(factors) == getattr(given["preconditioner"], "nbytes", 0), "each holds those of its parameters"
        assert max(factors) <= 0.7 * sum(factors)
    for said in ranks:
        assert "estimator=finite_difference" in said["refused"]
        assert said["cached"] == 4, "a file a rank for either kind, and none for the factors that were there"
    elements = sum(parameter.numel() for parameter in whole.parameters())
    assert sum(said["elements"] for said in ranks) == elements, "each holds its part"
