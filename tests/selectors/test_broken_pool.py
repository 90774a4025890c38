"""Every selector on a pool of which a tenth is broken: it finishes, and every record is accounted for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.selection.scores import OK, read_score_table

RECORDS, BROKEN = 40, {2: "corrupt_image", 13: "empty_answer", 14: "duplicate_id", 39: "corrupt_image"}
CASCADE = [{"name": "loss", "keep": 0.5}, {"name": "length"}]
SELECTORS = {
    "combine": {"how": "cascade", "of": CASCADE},
    "deita": {"complexity": None, "quality": None},
    "el2n": {},
    "embedding_similarity": {},
    "grad_norm": {"parameters": "last:1"},
    "ifd": {},
    "length": {},
    "less": {"parameters": "last:1", "projection": 8},
    "loss": {"prefer": "middle"},
    "perplexity": {},
}


@pytest.fixture(scope="module")
def broken(digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = pq.read_table(digits.pool).slice(0, RECORDS).to_pylist()
    rows[2]["image"] = {"bytes": b"no picture", "path": None}
    rows[13]["conversations"][1]["value"] = " "
    rows[14]["id"] = rows[5]["id"]
    rows[39]["image"] = {"bytes": rows[39]["image"]["bytes"][:40], "path": None}
    path = tmp_path_factory.mktemp("broken") / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), path)
    return path


@pytest.mark.parametrize("name", SELECTORS)
def test_kept_dropped_and_rejected_add_up_to_the_pool(settings, broken: Path, name: str):
    selection = ostlight.select(
        settings(pool={"path": str(broken), "duplicates": "first"}, selector={"name": name, "options": SELECTORS[name]})
    )
    rows = read_score_table(selection.folder.scores).to_pylist()
    assert [row["position"] for row in rows] == list(range(RECORDS))
    # Selectors without a model never open a picture, so a corrupt one is none of their business.
    opened = {p: reason for p, reason in BROKEN.items() if name != "length" or reason != "corrupt_image"}
    assert {row["position"]: row["reason"] for row in rows if row["state"] != OK} == opened
    assert all((row["score"] is None) == (row["state"] != OK) for row in rows)
    assert 0 < len(selection.kept) <= 8
    assert len(selection.kept) + selection.dropped + sum(selection.rejected.values()) == RECORDS
    assert not set(selection.kept.tolist()) & set(opened)
