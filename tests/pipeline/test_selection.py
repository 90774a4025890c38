"""What `ostlight.select` returns: scores and subset to look at from Python."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

import ostlight

Settings = Callable[..., dict[str, Any]]


def records(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{k}", "question": f"What is {k}?", "answer": "a" * (k + 1), "k": k, **more} for k in range(count)]


def pool_of(settings: Settings, path: Path | str | list[str], **more: Any) -> dict[str, Any]:
    return settings(pool={"path": path if isinstance(path, list) else str(path), **more}, selector={"name": "length"})


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_are_a_table_of_every_record_by_position(settings: Settings, tmp_path: Path) -> None:
    rows = records(9)
    rows[4]["answer"] = ""
    selection = ostlight.select(pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", rows)), "budget.count=3")
    frame = selection.scores.to_pandas()
    assert frame["position"].tolist() == list(range(9))
    assert frame["id"].dropna().tolist() == [row["id"] for row in rows if row["answer"]]
    assert frame["state"].tolist() == ["ok"] * 4 + ["rejected"] + ["ok"] * 4
    assert frame["reason"].dropna().tolist() == ["empty_answer"]
    assert frame.sort_values("rank")["position"].tolist()[:3] == selection.kept.tolist()
    assert frame["kept"].sum() == frame["rank"].notna().sum() == 3
    assert frame["score"].isna().sum() == 1
    assert dict(frame["tags"][0]) == {"k": "0"}
    assert not any(pa.types.is_list(f.type) for f in selection.scores.schema)


class _Vectors(ostlight.Selector):
    """Scores with a vector beside."""

    uses_proxy = False

    def score(self, batch: ostlight.Batch) -> dict[str, Any]:
        numbers = [float(sample.tags["k"]) for sample in batch.samples]
        return {"score": numbers, "double": [2 * n for n in numbers], "vector": [[n, 1.0] for n in numbers]}


def test_vectors_stay_in_the_files(settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ostlight.selection.registry._registered", {"vectors": _Vectors})
    config = pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", records(5))) | {"selector": {"name": "vectors"}}
    selection = ostlight.select(config, "budget.count=3")
    assert "vector" in ostlight.Scores.read(selection.folder.scores)
    assert {"score", "double"} <= {*selection.scores.column_names}
    assert "vector" not in selection.scores.column_names
    assert selection.scores["double"].to_pylist() == [0, 2, 4, 6, 8]
    assert selection.kept.tolist() == [4, 3, 2]


def test_the_subset_is_a_dataset_in_the_order_of_the_kept(settings: Settings, tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", records(9))
    selection = ostlight.select(pool_of(settings, pool), "budget.count=4")
    assert selection.subset["k"][:] == selection.kept.tolist()
    assert selection.subset[0] == records(9)[int(selection.kept[0])]


def test_the_subset_of_several_files_is_in_the_order_of_the_kept(settings: Settings, tmp_path: Path) -> None:
    rows = records(12)
    files = [write_jsonl(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    selection = ostlight.select(pool_of(settings, [str(file) for file in files]), "budget.count=7")
    order = [row["k"] for n in range(3) for row in rows[n::3]]
    assert selection.subset["k"][:] == [order[i] for i in selection.kept]
    assert sorted(selection.subset["k"][:], reverse=True) == selection.subset["k"][:]


@pytest.mark.parametrize("format", ["parquet", "hf"])
def test_tables_keep_their_features(settings: Settings, tmp_path: Path, format: str) -> None:
    image = PILImage.new("RGB", (8, 8), "red")
    rows = [row | {"image": image} for row in records(6)]
    features = Features(
        id=Value("string"), question=Value("string"), answer=Value("string"), k=Value("int16"), image=Image()
    )
    dataset = Dataset.from_list(rows, features=features)
    path = tmp_path / ("pool.parquet" if format == "parquet" else "pool")
    dataset.to_parquet(path) if format == "parquet" else dataset.save_to_disk(path)
    selection = ostlight.select(pool_of(settings, path), "budget.count=3")
    subset = selection.subset
    assert subset.features == features
    assert subset["k"][:] == selection.kept.tolist()
    assert subset[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_images_of_json_records_are_opened(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    PILImage.new("RGB", (8, 8), "blue").save(tmp_path / "images" / "a.png")
    rows = records(4, image="images/a.png")
    del rows[3]["image"]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    subset = ostlight.select(pool_of(settings, pool), "budget.count=4").subset
    assert subset[0]["image"] is None
    assert subset[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    rows = records(4, images=["images/a.png", "images/a.png"])
    write_jsonl(tmp_path / "several.jsonl", rows)
    subset = ostlight.select(pool_of(settings, tmp_path / "several.jsonl") | {"name": "b"}, "budget.count=4").subset
    assert [image.size for image in subset[0]["images"]] == [(8, 8), (8, 8)]


def test_fields_that_only_some_records_have_are_null_elsewhere(
    settings: Settings, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ostlight.data.subset_dataset.CHUNK_RECORDS", 2)
    rows = [
        row | ({"meta": {"a": row["k"]}} if row["k"] % 3 else {"other": 1.5, "meta": {"b": "x"}}) for row in records(7)
    ]
    selection = ostlight.select(pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", rows)), "budget.count=6")
    assert [row["other"] for row in selection.subset] == [rows[i].get("other") for i in selection.kept]
    assert [row["meta"]["a"] for row in selection.subset] == [rows[i]["meta"].get("a") for i in selection.kept]


def test_a_field_of_several_types_is_named(settings: Settings, tmp_path: Path) -> None:
    rows = [row | {"mixed": row["k"] if row["k"] % 2 else "text"} for row in records(6)]
    selection = ostlight.select(pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", rows)), "budget.count=5")
    with pytest.raises(ostlight.DataError, match="'mixed'") as caught:
        _ = selection.subset
    assert caught.value.path == selection.folder.subset / "pool.jsonl"


def test_the_subset_of_an_earlier_selection_is_refused(settings: Settings, tmp_path: Path) -> None:
    config = pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", records(9)))
    first = ostlight.select(config, "budget.count=4")
    second = ostlight.select(config, "budget.count=5")
    assert len(second.subset) == 5
    assert first.scores["kept"].to_pylist().count(True) == 4
    with pytest.raises(ostlight.DataError):
        _ = first.subset


def test_without_datasets_the_package_is_named(settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    selection = ostlight.select(pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", records(9))), "budget.count=4")
    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ostlight.DataError, match="pip install datasets"):
        _ = selection.subset


def test_it_describes_itself_and_survives_pickling(settings: Settings, tmp_path: Path) -> None:
    rows = records(9)
    rows[4]["answer"] = ""
    config = pool_of(settings, write_jsonl(tmp_path / "pool.jsonl", rows))
    config["selector"]["label"] = "<b>long</b>"
    selection = ostlight.select(config, "budget.count=3")
    for shown in (repr(selection), repr(pickle.loads(pickle.dumps(selection)))):
        assert all(
            text in shown for text in ("3", "9", "5 dropped", "1 rejected", "<b>long</b>", str(selection.folder.path))
        )
    page = selection._repr_html_()
    assert "&lt;b&gt;long" in page
    assert "<b>" not in page
    assert "empty_answer" in page
    again = pickle.loads(pickle.dumps(selection))
    assert np.array_equal(again.kept, selection.kept)
    assert again.scores.equals(selection.scores)
    assert again.subset.to_list() == selection.subset.to_list()
    assert pq.read_table(selection.folder.selection)["rank"].null_count == 6
