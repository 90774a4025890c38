"""Input that leaves a selector little to work with, through the command line: a clear error, or a fallback that is
stated; nothing NaN in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ostlight import cli
from ostlight.selection.scores import Scores, read_score_table

pytestmark = pytest.mark.usefixtures("few_samples_compared")

RECORDS = 48
LAST = {"parameters": "last:1"}
FIRST = LAST | {"estimator": "first_order"}
LESS = {"less": {"projection": 4} | LAST}
Ended = tuple[int, str, Path]


@pytest.fixture
def select(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., Ended]:
    """Runs ``ostlight select`` with a selector and other settings: exit status, messages and the run's folder."""

    def run(name: str, options: dict[str, Any], *overrides: str, **sections: Any) -> Ended:
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(settings(selector={"name": name, "options": options}, **sections)))
        monkeypatch.setattr("sys.argv", ["ostlight", "select", str(file), *overrides])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        messages = capsys.readouterr().err
        assert "Traceback" not in messages
        return int(stop.value.code or 0), messages, tmp_path / "runs" / "run"

    return run


def stored(folder: Path) -> Scores:
    """The run's scores, none of whose columns of numbers holds NaN or infinity."""
    table = read_score_table(folder / "scores")
    for name in table.column_names:
        for value in table[name].to_pylist():
            numbers = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, float)]
            assert np.isfinite(numbers).all(), name
    return Scores(table)


@pytest.fixture
def two_anchors(digits, tmp_path: Path) -> dict[str, str]:
    """Anchors of two of the pool's seven tasks, grouped by task."""
    rows = pq.read_table(digits.anchors).to_pylist()
    first = rows[0]
    other = next(row for row in rows if row["task"] != first["task"])
    file = tmp_path / "two.parquet"
    pq.write_table(pa.Table.from_pylist([first, other], pq.read_schema(digits.anchors)), file)
    return {"path": str(file), "group": "task"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("icons", LESS),
        ("rds", {}),
        ("ost", FIRST | {"admit": "own_group"}),
        ("ost", LAST | {"selection": "round_robin"}),
    ],
    ids=["icons", "rds", "ost, own_group", "ost, round_robin"],
)
def test_tasks_without_an_anchor(select, two_anchors, name: str, options: dict[str, Any]):
    code, messages, folder = select(name, options, "budget.count=9", anchors=two_anchors)
    assert code == 0, messages
    assert len(stored(folder)) == RECORDS
    assert "= 9 kept" in messages


def test_nobody_or_everybody_admitted(select):
    code, messages, folder = select("ost", LAST, "budget.threshold=1e9")
    assert code == 1
    assert "no record is kept" in messages
    admitted = int((stored(folder).column("alignment") > 0).sum())
    code, messages, _ = select("ost", LAST, "budget.threshold=-1e9")
    assert (code, f"= {admitted} kept" in messages) == (0, True)
    code, messages, _ = select("ost", LAST, "budget.count=1000")  # more than there are
    assert (code, f"= {RECORDS} kept" in messages) == (0, True)
    assert f"{RECORDS - admitted} of {RECORDS} selected samples are not admitted" in messages


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("rds", {"embedding": {"source": "FOLDER"}}, "source"),  # as for all that read embeddings
        ("embed", {"source": "FOLDER"}, "source"),
        ("embedding_similarity", {"embedder": "FOLDER"}, "embedder"),
        ("deita", {"complexity": None, "quality": None, "embedder": "FOLDER"}, "embedder"),
        ("deita", {"complexity": "FOLDER", "quality": None}, "complexity"),
    ],
)
def test_a_folder_that_is_no_model(select, tmp_path: Path, name: str, options: dict[str, Any], option: str):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    given = yaml.safe_load(yaml.safe_dump(options).replace("FOLDER", str(folder)))
    code, messages, run = select(name, given)
    assert code == 1
    assert f"selector.options.{option}" in messages
    assert not [file for file in run.rglob("*.parquet") if "scores" in file.parts]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coincide", {"clusters": 1000}),
        ("facility_location", {"neighbours": 1000}),
        ("presel", {"clusters": 1000, "neighbours": 1000, "reference": 1.0}),
        ("semdedup", {"clusters": 1000, "eps": 0.0}),
    ],
)
def test_more_than_there_is(select, name: str, options: dict[str, Any]):
    code, messages, folder = select(name, options, "budget.count=1000")
    assert code == 0, messages
    assert len(stored(folder)) == RECORDS
    assert f"= {RECORDS} kept" in messages


@pytest.mark.parametrize(("name", "options", "count"), [("rds", {}, 0), ("icons", LESS, 1), ("ost", FIRST, 1)])
def test_a_pool_of_nothing_or_of_one(select, digits, tmp_path: Path, name: str, options: dict[str, Any], count: int):
    file = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(digits.pool).slice(0, count), file)
    code, messages, folder = select(name, options, "budget.count=5", pool={"path": str(file)})
    if not count:
        assert (code, "holds no record" in messages) == (1, True)
        return
    assert code == 0, messages
    assert len(stored(folder)) == 1


def test_a_pool_of_which_nothing_can_be_read(select, digits, tmp_path: Path):
    rows = pq.read_table(digits.pool).to_pylist()
    for row in rows:
        row["image"] = {"bytes": b"no picture", "path": None}
    file = tmp_path / "corrupt.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), file)
    code, messages, _ = select("presel", {}, pool={"path": str(file)})
    assert code == 1
    assert f"no record is kept: of {RECORDS}, {RECORDS} were rejected ({RECORDS} corrupt_image" in messages


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"selection": "round_robin"}, "utility_by_anchor=true"),
        ({"estimator": "first_order", "admit": "own_group"}, "anchors.group"),
        ({"utility_by_anchor": True, "min_confidence": 0.9}, "there is one"),
    ],
)
def test_what_a_selection_will_miss_is_said_before_the_pool_is_scored(
    select, two_anchors, tmp_path: Path, options: dict[str, Any], wanted: str
):
    one = tmp_path / "one.parquet"
    pq.write_table(pq.read_table(two_anchors["path"]).slice(0, 1), one)
    code, messages, folder = select("ost", LAST | options, anchors={"path": str(one)})
    assert code == 1
    assert wanted in messages
    assert not (folder / "scores").exists()
    assert not (folder / "proxy").exists()
