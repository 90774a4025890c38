"""The benchmark of reading images runs, here on a few."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_input
import pytest


@pytest.mark.slow
def test_every_part_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(bench_input, "RATE_SAMPLES", 2)
    monkeypatch.setattr(bench_input, "SIDES", (64,))
    monkeypatch.setattr(bench_input, "MEMORY_SAMPLES", 2)
    monkeypatch.setattr(
        sys, "argv", ["bench_input.py", "--part", "rate", "training", "vision", "--samples", "8", "--out", str(out)]
    )
    bench_input.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["metric"] for row in rows} == {
        "rate",
        "tokens",
        "encoded",
        "bare_loop",
        "reading",
        "share_of_bare_loop",
        "training_speedup",
        "scoring_speedup",
    }
    assert all(row["value"] > 0 for row in rows)
