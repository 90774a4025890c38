"""The benchmark's run is one that `ostlight select` takes."""

from __future__ import annotations

from pathlib import Path

import bench_ten_million
import pyarrow.parquet as pq


def test_a_made_run_is_selected_from_again(tmp_path: Path) -> None:
    records = 2_500
    bench_ten_million.make_run(tmp_path, records)
    bench_ten_million.claim_scores(tmp_path)
    bench_ten_million.check_table(tmp_path, records)
    for budget in ({"fraction": 0.1}, {"fraction": 0.2, "stratify_by": "task"}):
        bench_ten_million.reselect(tmp_path, records, **budget)
        kept = pq.read_table(tmp_path / "run" / "selection.parquet")["kept"]
        scored = records - -(-records // bench_ten_million.REJECTED_EVERY)
        assert sum(kept.to_pylist()) == round(budget["fraction"] * scored)
    assert bench_ten_million._peak_mb() > 0
