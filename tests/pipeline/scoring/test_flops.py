"""FLOPs of scoring are those of its batches, also where the few samples that are counted are longer than the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ostlight
from ostlight.config.schema import Model
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.digitmath.model import checkpoint
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel


def record(position: int) -> dict[str, Any]:
    """Every 16th is three times as long: those that are counted."""
    words = "three four five six seven eight nine ten " * (4 if position % 16 == 0 else 1)
    turns = [{"from": "human", "value": f"what is {words}?"}, {"from": "gpt", "value": str(position % 10)}]
    return {"id": f"r{position}", "conversations": turns}


def test_they_are_within_15_percent_of_counting_all_batches(settings, tmp_path: Path):
    (tmp_path / "pool.json").write_text(json.dumps([record(k) for k in range(128)]))
    config = settings(pool={"path": str(tmp_path / "pool.json")}, selector={"name": "loss"})
    config["compute"] |= {"shard_size": 128, "tokens_per_batch": 100, "workers": 0}
    ostlight.select(config)
    lines = (tmp_path / "runs" / "run" / "cost_log.jsonl").read_text().splitlines()
    (logged,) = [one["flops"] for one in map(json.loads, lines) if one["stage"] == "score"]
    model = MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")
    samples = [one for _, one in Pool.open(tmp_path / "pool.json").read(range(128)) if isinstance(one, Sample)]
    with FlopCounter() as counter:
        for batch in model.batches(samples, 100):
            model.losses(batch)
    assert logged == pytest.approx(counter.total, rel=0.15)
