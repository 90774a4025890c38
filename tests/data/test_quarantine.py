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
    assert quarantine.positions() == {1, 2, 3, 4}
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


def test_stages_merge_without_double_rows(pool: Pool) -> None:
    scored, trained = _read(pool, "score"), Quarantine()
    trained.add(pool, 0, BadRecord("over_long", "9,000 tokens"), stage="train", id="first")
    trained.add(pool, 1, BadRecord("bad_json", "again"), stage="train")
    both = scored.merge(trained, _read(pool, "score"), trained)
    assert len(both) == 6
    assert both.counts() == {"empty_answer": 2, "bad_json": 1, "image_count": 1, "over_long": 1}
    assert len(scored) == 4


def test_the_first_reason_of_a_stage_stays(pool: Pool) -> None:
    quarantine = _read(pool, "score")
    quarantine.add(pool, 1, BadRecord("nan_loss", "not a number"), stage="score")
    assert [row.reason for row in quarantine if row.position == 1] == ["bad_json"]


def test_nothing_set_aside_is_a_file_too(tmp_path: Path) -> None:
    Quarantine().write(tmp_path / "quarantine.parquet")
    assert Quarantine.read(tmp_path / "quarantine.parquet").counts() == {}
    with pytest.raises(DataError, match="not a readable quarantine file"):
        Quarantine.read(tmp_path / "gone.parquet")
