from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ostlight.data.pool import Pool
from ostlight.data.quarantine import SCHEMA, Quarantine
from ostlight.errors import BadRecord, DataError


@pytest.fixture
def pool(jsonl: Callable, chat: Callable) -> Pool:
    return Pool.open(jsonl(chat("q", "a"), "{broken", chat("q", ""), chat("<image>", "a"), chat("q", "", id="x")))


def _read(pool: Pool, stage: str) -> Quarantine:
    quarantine = Quarantine()
    for position, record in pool.read(range(len(pool))):
        if isinstance(record, BadRecord):
            quarantine.add(pool, position, record, stage=stage)
    return quarantine


def test_rows_say_where_and_why(pool: Pool, tmp_path: Path) -> None:
    quarantine = _read(pool, "score")
    assert quarantine.counts() == {"empty_answer": 2, "bad_json": 1, "image_count": 1}
    path = tmp_path / "run" / "quarantine.parquet"
    quarantine.write(path)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.column("position").to_pylist() == [1, 2, 3, 4]
    row = table.to_pylist()[2]
    assert row == {
        "position": 3,
        "id": None,
        "file": str(pool.files[0]),
        "record": 4,
        "field": "images",
        "reason": "image_count",
        "detail": row["detail"],
        "stage": "score",
    }
    assert [p.name for p in path.parent.iterdir()] == ["quarantine.parquet"]
    assert list(Quarantine.read(path)) == list(quarantine)


def test_a_record_rejected_in_two_stages_counts_once(pool: Pool) -> None:
    quarantine = _read(pool, "score")
    quarantine.add(pool, 0, BadRecord("over_long", "9,000 tokens"), stage="train", id="first")
    quarantine.add(pool, 1, BadRecord("no_answer", "again"), stage="train")
    assert len(list(quarantine)) == 6
    assert quarantine.counts() == {"empty_answer": 2, "bad_json": 1, "image_count": 1, "over_long": 1}


def test_the_first_reason_of_a_stage_stays(pool: Pool) -> None:
    quarantine = _read(pool, "score")
    quarantine.add(pool, 1, BadRecord("nan_loss", "not a number"), stage="score")
    assert [row.reason for row in quarantine if row.position == 1] == ["bad_json"]


def test_nothing_rejected_is_a_file_too(tmp_path: Path) -> None:
    Quarantine().write(tmp_path / "quarantine.parquet")
    assert Quarantine.read(tmp_path / "quarantine.parquet").counts() == {}
    with pytest.raises(DataError) as caught:
        Quarantine.read(tmp_path / "gone.parquet")
    assert caught.value.path == tmp_path / "gone.parquet"
