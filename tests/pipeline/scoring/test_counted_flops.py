"""FLOPs of scoring are those of its batches, not of a few samples that may be longer than the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ostlight
from ostlight.pipeline.scoring import counted_flops


def record(position: int) -> dict[str, Any]:
    """Every 16th is long: those that the cost is estimated on before scoring."""
    words = "three four five six seven eight nine ten " * (4 if position % 16 == 0 else 1)
    turns = [{"from": "human", "value": f"what is {words}?"}, {"from": "gpt", "value": str(position % 10)}]
    return {"id": f"r{position}", "conversations": turns}


@pytest.mark.parametrize("selector", [{"name": "loss"}, {"name": "ost", "options": {"step": "sgd", "step_size": 0.1}}])
def test_they_are_within_5_percent_of_counting_every_batch(settings, tmp_path: Path, monkeypatch, selector):
    (tmp_path / "pool.json").write_text(json.dumps([record(k) for k in range(128)]))
    found = {}
    for every in (1, counted_flops.COUNTED_EVERY):
        monkeypatch.setattr(counted_flops, "COUNTED_EVERY", every)
        config = settings(name=f"every-{every}", pool={"path": str(tmp_path / "pool.json")}, selector=selector)
        config["compute"] |= {"shard_size": 64, "tokens_per_batch": 100, "workers": 0}
        ostlight.select(config)
        lines = (tmp_path / "runs" / f"every-{every}" / "cost_log.jsonl").read_text().splitlines()
        score = next(one for one in map(json.loads, lines) if one["stage"] == "score")
        found[every] = score["flops"] - score["more"]["setup_flops"]
    whole, some = found.values()
    assert some == pytest.approx(whole, rel=0.05)
