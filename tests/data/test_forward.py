"""Parquet is read forward, however the kept records are ordered."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.formats import parquet
from ostlight.data.pool import Pool
from ostlight.data.subset import write_subset

RECORDS, IN_GROUP = 60, 10


def test_a_subset_in_any_order_unpacks_each_row_group_once_a_pass(tmp_path: Path, monkeypatch) -> None:
    columns = {
        "id": [f"r{n}" for n in range(RECORDS)],
        "question": [f"question {n}" for n in range(RECORDS)],
        "answer": ["yes"] * RECORDS,
        "kind": pa.array([f"kind {n % 3}" for n in range(RECORDS)]).dictionary_encode(),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "pool.parquet", row_group_size=IN_GROUP)
    pool = Pool.open(tmp_path / "pool.parquet")
    kept = random.Random(0).sample(range(RECORDS), 40)
    loads: list[int] = []
    load = parquet._Reader._load
    monkeypatch.setattr(parquet._Reader, "_load", lambda reader, i: (loads.append(i), load(reader, i))[1])
    monkeypatch.setattr(parquet, "KEPT_BYTES", 0)  # no more than one row group in memory
    monkeypatch.setattr(parquet._Reader, "_unpack", lambda reader, group: 1 / 0)  # only a jump back needs it
    (written,) = write_subset(pool, kept, tmp_path / "subset")
    assert pq.read_table(written).to_pylist() == table.take(kept).to_pylist()
    assert pq.read_schema(written).equals(table.schema)
    assert len(loads) <= 2 * RECORDS / IN_GROUP  # a pass that looks at the records, and one that writes them
    assert sorted(path.name for path in written.parent.iterdir()) == [".files", "pool.parquet"]
