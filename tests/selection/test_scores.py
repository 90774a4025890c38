"""Reading score tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.selection import score_files
from ostlight.selection.scores import Scores


@pytest.mark.parametrize("limit", [2**31 - 1, 10])
def test_columns_of_very_many_numbers_are_read_as_others(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(score_files, "MAX_LIST_VALUES", limit)
    vectors = np.arange(24, dtype=np.float16).reshape(6, 4)
    for part, rows in enumerate(([3, 5], [4, 0], [1, 2])):
        columns = {
            "position": rows,
            "state": ["ok"] * 2,
            "embedding": list(vectors[rows]),
            "ragged": [[1.0], [2.0] * 9],
        }
        if part == 1:
            columns |= {"state": ["rejected", "ok"], "embedding": [None, vectors[0]]}
        pq.write_table(pa.table(columns), tmp_path / f"part-{part:06d}.parquet")
    read = Scores.read(tmp_path)
    assert pa.types.is_fixed_size_list(read.table["embedding"].type) == (limit == 10)
    assert pa.types.is_list(read.table["ragged"].type)
    assert read.positions.tolist() == [0, 1, 2, 3, 5]
    found = read.take([2, 0]).column("embedding")
    assert found.dtype == np.float16
    assert found.tolist() == vectors[[2, 0]].tolist()
