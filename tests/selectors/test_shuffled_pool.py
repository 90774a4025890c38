"""Selectors that cluster the pool select the same samples whatever the order of its records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.digitmath.model import checkpoint
from ostlight.selection.scores import Scores

SELECTORS = {
    "coincide": {"clusters": 6},
    "presel": {"clusters": 2, "reference": 0.3},
    "semdedup": {"clusters": 6},
}


@pytest.mark.parametrize("name", SELECTORS)
def test_the_order_of_the_pools_records_decides_nothing(settings, digits, tmp_path: Path, name: str):
    rows = pq.read_table(digits.pool)
    kept, scores = [], []
    for k in range(2):
        # Embeddings in half precision round alike only where the order of sums is far below their last bit.
        proxy = {"path": str(checkpoint("proxy")), "warmup": {"fraction": 0}, "dtype": "float64"}
        file = tmp_path / f"{k}.parquet"
        order = np.random.default_rng(k).permutation(len(rows)) if k else np.arange(len(rows))
        pq.write_table(rows.take(order), file)
        choice = {"name": name, "options": SELECTORS[name]}
        config = settings(name=f"run{k}", pool={"path": str(file)}, selector=choice, proxy=proxy)
        selection = ostlight.select(config, "budget.count=15")
        table = Scores.read(selection.folder.scores)
        kept.append({str(table.ids[row]) for row in np.flatnonzero(np.isin(table.positions, selection.kept))})
        scores.append(dict(zip(table.ids, table.score.tolist(), strict=True)))
    assert kept[0] == kept[1]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
