"""The benchmark of reading and streaming a pool runs, here on a small one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_stream
import pytest


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path, monkeypatch):
    out = tmp_path / "out.jsonl"
    arguments = ["--records", "3000", "--encoded", "1000", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_stream.py", *arguments])
    bench_stream.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["metric"] for row in rows} == {"rate", "peak_rss"}
    assert len({row["case"] for row in rows}) == 5
    assert any("encoded=1000" in row["case"] for row in rows)
