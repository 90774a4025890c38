"""Pools, anchors and question sets as objects of the program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage

import ostlight
from ostlight.data.in_memory import write_records
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import DataError

Settings = Callable[..., dict[str, Any]]
RED = PILImage.new("RGB", (8, 8), (200, 10, 20))


def rows(count: int = 9, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{k}", "question": f"What is {k}?", "answer": "a" * (k + 1), "k": k, **more} for k in range(count)]


def run_settings(settings: Settings, **sections: Any) -> dict[str, Any]:
    """A run of a selector that needs neither model nor anchors, without a pool."""
    return settings(pool={}, anchors={}, selector={"name": "length"}, budget={"count": 4}) | sections


def samples(records: Any, folder: Path, root: Path | None = None) -> list[Sample]:
    path, _ = write_records(records, folder, "pool")
    pool = Pool.open(path, image_root=root)
    return [pool[k] for k in range(len(pool))]


MAKERS: dict[str, Callable[[], Any]] = {
    "list": rows,
    "tuple": lambda: tuple(rows()),
    "dataset": lambda: Dataset.from_list(rows()),
    "view of a dataset": lambda: Dataset.from_list([*rows(20)]).select(range(9)),
    "frame": lambda: pd.DataFrame(rows()),
    "arrow": lambda: pa.Table.from_pylist(rows()),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_records_of_every_kind_are_the_same_samples(kind: str, tmp_path: Path) -> None:
    expected = samples(rows(), tmp_path / "expected")
    assert samples(MAKERS[kind](), tmp_path / "found") == expected
    first = write_records(MAKERS[kind](), tmp_path / "found", "pool")
    assert first[1] is False
    assert [path.name for path in (tmp_path / "found").iterdir()] == [first[0].parent.name]


@pytest.mark.parametrize("kind", [pa.table, pa.Table.to_pandas])
def test_two_columns_of_one_name_are_refused(kind: Callable[..., Any], tmp_path: Path) -> None:
    table = kind(pa.Table.from_arrays([["Which?"], ["a"], ["b"]], ["question", "answer", "answer"]))
    with pytest.raises(DataError, match="several columns are called 'answer'"):
        write_records(table, tmp_path, "pool")


def test_images_may_be_objects_bytes_and_paths(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    images = [RED, data, tmp_path / "red.png", "red.png", {"bytes": data, "path": None}]
    given = [{**row, "image": image} for row, image in zip(rows(5), images, strict=True)]
    for sample in samples(given, tmp_path / "out", tmp_path):
        assert sample.images[0].open().getpixel((3, 3)) == (200, 10, 20)
    turns = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]}]
    turns.append({"role": "assistant", "content": "Red."})
    (nested,) = samples([{"messages": turns}], tmp_path / "nested")
    assert nested.images[0].open().getpixel((3, 3)) == (200, 10, 20)
    table = Dataset.from_list([{**row, "image": RED} for row in rows(2)]).cast_column("image", Image())
    assert samples(table, tmp_path / "table")[1].images[0].open().getpixel((3, 3)) == (200, 10, 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "YCbCr", "LAB"])
def test_images_of_every_mode_are_written(mode: str, tmp_path: Path) -> None:
    image = (
        PILImage.new(mode, (4, 4)) if mode == "I;16" else RED.convert("RGB").convert(mode) if mode != "LAB" else None
    )
    image = image or PILImage.new("LAB", (4, 4), (120, 10, 20))
    (sample,) = samples([{**rows(1)[0], "image": image}], tmp_path)
    assert sample.images[0].open().mode == "RGB"


def test_numbers_dates_and_missing_values_of_tables_are_plain(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(2))
    frame["score"] = np.array([1.5, np.nan])
    frame["when"] = pd.to_datetime(["2026-01-02", None])
    frame["turns"] = [np.array(["a", "b"], dtype=object), None]
    path, _ = write_records(frame, tmp_path, "pool")
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["score"], first["k"], first["turns"]) == (1.5, 0, ["a", "b"])
    assert first["when"].startswith("2026-01-02")
    assert (second["score"], second["when"], second["turns"]) == (None, None, None)


def _generator() -> Any:
    yield from rows()


@pytest.mark.parametrize(
    "given",
    [
        _generator(),
        iter(rows()),
        Dataset.from_list(rows()).to_iterable_dataset(),
        DatasetDict(train=Dataset.from_list(rows())),
        Dataset.from_list(rows()).with_transform(lambda batch: batch),
        {"question": ["a"], "answer": ["b"]},
        [],
        [1, 2],
        [{"question": object()}],
        [{"question": "a", "answer": "b", "image": np.zeros((4, 4, 3), np.uint8)}],
        pd.DataFrame(),
        Dataset.from_dict({}),
        7,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_list_of_records_is_refused_by_name(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ostlight.DataError, match="anchors"):
        write_records(given, tmp_path, "anchors")
    assert list(tmp_path.iterdir()) == []


def test_the_record_and_field_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ostlight.DataError, match=r"pool\[2\], field 'bad'"):
        write_records([*rows(2), {"question": "a", "bad": {"deep": [object()]}}], tmp_path, "pool")


def test_a_run_from_memory_resumes_and_refuses_another_pool(
    settings: Settings, logged: Callable[[], str], tmp_path: Path
) -> None:
    config, pool = run_settings(settings), rows()
    selection = ostlight.select(config, pool=pool)
    assert selection.subset.to_list() == [pool[i] for i in selection.kept]
    pool[0]["answer"] = "changed afterwards"
    assert selection.subset.to_list()[-1] == rows()[int(selection.kept[-1])]
    with pytest.raises(ostlight.RunChangedError) as caught:
        ostlight.select(config, pool=pool)
    assert caught.value.changed == ["pool"]
    assert len(list((selection.folder.path / "records").iterdir())) == 1
    logged()
    again = ostlight.select(config, {"budget.count": 5}, pool=rows())
    assert len(again.kept) == 5
    assert "9 records are scored in" in logged()
    by_file = ostlight.select(selection.folder.path / "config.yaml")
    assert by_file.kept.tolist() == again.kept.tolist()


def test_every_section_may_be_given(settings: Settings, digits: Any, tmp_path: Path) -> None:
    from ostlight.data.formats import open_source

    def read(path: Path) -> list[dict[str, Any]]:
        source = open_source(path)
        return [source.record(k) for k in range(len(source))]

    pool, test = read(digits.pool), read(digits.test)
    config = settings(pool={"image_root": str(digits.pool.parent)}, anchors={}, test={})
    config["test"] = {"image_root": str(digits.test.parent)}
    validation = ostlight.validate(config, pool=pool, anchors=digits.anchors, test=test)
    assert validation.records == {"pool": len(pool), "anchors": 14, "test": len(test)}
    assert not (tmp_path / "runs").exists()
    selection = ostlight.select(config, pool=pool, test=test)
    by_path = ostlight.select(settings(name="by-path"))
    assert selection.kept.tolist() == by_path.kept.tolist()
    ostlight.train(selection.folder.config)
    assert set(ostlight.evaluate(selection.folder.config).counts) >= {"all"}
    with pytest.raises(TypeError):
        ostlight.select(config, pol=pool)  # type: ignore[call-arg]
