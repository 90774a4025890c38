"""Score files are asked and read in parts as a whole table would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.data.record import MAX_TAG_CHARACTERS
from ostlight.errors import DataError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.score_files import ScoreFiles
from ostlight.selection.scores import Scores, read_score_table

COLORS = ["red", "green", "blue"]


def row(n: int) -> dict[str, Any]:
    """Record ``n``: every seventh is rejected, every fifth has no tags, every second no shape."""
    tags = [] if n % 5 == 0 else [("color", COLORS[n % 3])] + [("shape", "round")] * (n % 2)
    common = {"position": n, "id": f"r{n}", "tags": tags, "tokens": n, "note": f"note {n}", "vector": [float(n), 1.0]}
    if n % 7 == 0:
        return common | {"state": "rejected", "reason": "empty_answer", "field": "answer", "detail": "empty"}
    return common | {"state": "ok", "score": float(n % 4), "loss": n / 2}


def write(folder: Path, *parts: list[int]) -> Path:
    for k, numbers in enumerate(parts):
        pq.write_table(to_table([row(n) for n in numbers]), folder / f"part-{k:06d}.parquet")
    return folder


@pytest.fixture(params=["in order", "out of order"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Also with characters that patterns of file names give a meaning."""
    place = tmp_path / "a [b]*"
    place.mkdir()
    first, second = list(range(20)), list(range(20, 50))
    return write(place, first, second) if request.param == "in order" else write(place, second, first)


def test_scores_of_files_are_those_of_the_whole_table(folder: Path) -> None:
    whole, read = Scores(read_score_table(folder)), Scores.read(folder)
    assert sorted(read.names) == sorted(whole.names)
    some = np.array([30, 2, 17, 5])
    for a, b in [
        (whole, read),
        (whole.take(some), read.take(some)),
        (whole.take(some).take([1, 0]), read.take([2, 30])),
    ]:
        for name in ("position", "score", "tokens", "loss", "vector", "note", "id", "answer_cut"):
            assert a.column(name).tolist() == b.column(name).tolist(), name
            assert a.column(name).dtype == b.column(name).dtype, name
        assert {k: v.tolist() for k, v in a.tags().items()} == {k: v.tolist() for k, v in b.tags().items()}
        for name, (values, codes) in a.encoded_tags().items():
            assert values.tolist() == b.encoded_tags()[name][0].tolist()
            assert codes.tolist() == b.encoded_tags()[name][1].tolist()
        assert b.table.select(a.names).to_pylist() == a.table.to_pylist()


def test_a_tag_alone_is_that_of_all_tags(folder: Path) -> None:
    assert Scores.read(folder).tag("color").tolist() == Scores.read(folder).tags()["color"].tolist()
    with pytest.raises(DataError, match="color, shape"):
        Scores.read(folder).tag("size")


def test_replaced_and_added_columns_win_over_those_of_the_files(folder: Path) -> None:
    scores = Scores.read(folder)
    changed = scores.with_score(-scores.score).with_columns({"more": np.arange(len(scores)), "vector": scores.score})
    assert changed.score.tolist() == (-scores.score).tolist()
    assert changed.take([3]).column("more").tolist() == [3]
    assert changed.column("vector").tolist() == scores.score.tolist()


def test_rejected_records_and_queries(folder: Path) -> None:
    files = ScoreFiles(folder)
    assert files.rejected()["position"].to_pylist() == list(range(0, 50, 7))
    count = "SELECT count(*) AS n FROM scores WHERE state = 'ok'"
    assert files.query(count).to_pylist() == Scores.read(folder).query(count).to_pylist() == [{"n": 42}]
    assert Scores.read(folder).take([0, 1]).query(count).to_pylist() == [{"n": 2}]


def test_a_long_text_among_the_tags_of_an_older_table_is_none(tmp_path: Path) -> None:
    rows = [row(n) | {"tags": [("color", "red"), ("text", "x" * (MAX_TAG_CHARACTERS + n % 2))]} for n in (1, 2, 3)]
    pq.write_table(to_table(rows), tmp_path / "part-000000.parquet")
    assert Scores.read(tmp_path).tag("text").tolist() == ["", "x" * MAX_TAG_CHARACTERS, ""]
    assert Scores(read_score_table(tmp_path)).tag("text").tolist() == Scores.read(tmp_path).tag("text").tolist()


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for k, values in enumerate([[1.0], ["text"]]):
        table = to_table([row(1)]).append_column("odd", pa.array(values))
        pq.write_table(table, tmp_path / f"part-{k:06d}.parquet")
    with pytest.raises(DataError, match="'odd'"):
        Scores.read(tmp_path)
    with pytest.raises(DataError, match="holds no scores"):
        ScoreFiles(tmp_path / "none")
