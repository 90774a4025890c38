"""Parquet and Hugging Face folders: rows as records, and the same rows out again."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.data.formats import parquet
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError


@pytest.fixture
def rows(png: Callable) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{n}",
            "image": {"bytes": png(n), "path": f"{n}.png"},
            "conversations": [{"from": "human", "value": f"<image>{n}?"}, {"from": "gpt", "value": f"{n}!"}],
            "level": n % 3,
        }
        for n in range(200)
    ]


@pytest.fixture
def file(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "pool.parquet"
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": '{"info": {}}'})
    pq.write_table(table, path, row_group_size=64, compression="zstd")
    return path


def test_rows_of_a_parquet_file_are_records(shade: Callable, file: Path) -> None:
    pool = Pool.open(file)
    assert len(pool) == 200
    sample = pool[130]
    assert (sample.id, sample.answer, dict(sample.tags)) == ("row-130", "130!", {"level": "1"})
    assert shade(sample.images[0]) == 130
    assert [s.id for _, s in pool.read([199, 0, 64, 63]) if isinstance(s, Sample)] == [
        f"row-{n}" for n in (199, 0, 64, 63)
    ]
    assert pickle.loads(pickle.dumps(pool))[5].id == "row-5"


@pytest.mark.parametrize("order", [[*range(200)], [*range(199, -1, -1)], [5, 190, 3, 64, 2, 191, 63, 65, 1] * 3])
@pytest.mark.parametrize("whole_group_bytes", [0, 1 << 30])
def test_any_order_gives_the_same_rows(
    file: Path, order: list[int], whole_group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed, unpacked and whole row groups; at most one whole row group kept."""
    monkeypatch.setattr(parquet, "WHOLE_GROUP_BYTES", whole_group_bytes)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 0)
    monkeypatch.setattr(parquet, "STREAM_ROWS", 7)
    pool = Pool.open(file)
    assert [s.answer for _, s in pool.read(order) if isinstance(s, Sample)] == [f"{n}!" for n in order]


def test_a_parquet_subset_keeps_schema_and_values(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "WRITE_BYTES", 1000)
    kept = [150, 3, 64, 2]
    written = write_subset(Pool.open(file), kept, tmp_path / "subset")
    assert written == [tmp_path / "subset" / "pool.parquet"]
    source, subset = pq.read_table(file), pq.read_table(written[0])
    assert subset.schema.equals(source.schema, check_metadata=True)
    assert subset.to_pylist() == source.take(kept).to_pylist()
    assert pq.ParquetFile(written[0]).metadata.row_group(0).column(0).compression == "ZSTD"


def test_plain_columns_with_a_list_of_images_and_missing_answers(
    shade: Callable, tmp_path: Path, png: Callable
) -> None:
    rows = [
        {
            "question": "Same?",
            "answer": "no",
            "images": [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}],
        },
        {"question": "Text?", "answer": "yes", "images": None},
        {"question": "None?", "answer": None, "images": []},
    ]
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    two, text, none = (record for _, record in Pool.open(path).read(range(3)))
    assert isinstance(two, Sample)
    assert [shade(image) for image in two.images] == [1, 2]
    assert isinstance(text, Sample)
    assert text.images == ()
    assert isinstance(none, BadRecord)
    assert none.reason == "no_answer"


def test_ids_that_are_partly_missing_or_repeated(tmp_path: Path) -> None:
    rows = [
        {"id": id, "question": "q", "answer": answer}
        for id, answer in [("a", "1"), (None, "2"), (None, "2"), ("a", "3")]
    ]
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = [record for _, record in Pool.open(path, duplicates="first").read(range(4))]
    assert isinstance(found[1], Sample)
    assert isinstance(found[2], Sample)
    assert found[2].id == f"{found[1].id}-2"
    assert isinstance(found[3], BadRecord)
    assert found[3].reason == "duplicate_id"


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError) as caught:
        Pool.open(tmp_path / "pool.parquet")
    assert caught.value.path == tmp_path / "pool.parquet"


@pytest.fixture
def folder(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    features = datasets.Features(
        id=datasets.Value("string"),
        image=datasets.Image(),
        conversations=[{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        level=datasets.Value("int64"),
    )
    path = tmp_path / "saved"
    datasets.Dataset.from_list(rows, features=features).save_to_disk(path, num_shards=3)
    return path


def test_a_hugging_face_folder_reads_and_its_subset_loads(
    shade: Callable, folder: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    pool = Pool.open(folder)
    assert len(pool) == 200
    assert [s.id for _, s in pool.read([199, 0, 100]) if isinstance(s, Sample)] == ["row-199", "row-0", "row-100"]
    assert shade(pool[77].images[0]) == 77
    assert pickle.loads(pickle.dumps(pool))[5].id == "row-5"

    kept = [150, 3, 64, 2]
    (written,) = write_subset(pool, kept, tmp_path / "subset")
    subset, source = datasets.load_from_disk(written), datasets.load_from_disk(folder)
    assert subset.features == source.features
    assert subset.data.schema.equals(source.data.schema, check_metadata=True)
    assert subset.data.to_pylist() == [rows[n] for n in kept]
    assert subset[0]["image"].getpixel((0, 0)) == (150, 0, 0)
    assert [Pool.open(written)[n].id for n in range(4)] == [f"row-{n}" for n in kept]


def test_images_of_a_hugging_face_folder_may_be_paths(shade: Callable, tmp_path: Path, png: Callable) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"question": "q", "answer": "a", "image": "pics/0.png"}]).save_to_disk(saved)
    (saved / "pics").mkdir()
    (saved / "pics" / "0.png").write_bytes(png(5))
    pool = Pool.open(saved)
    assert shade(pool[0].images[0]) == 5
    (written,) = write_subset(pool, [0], tmp_path / "subset")
    assert shade(Pool.open(written)[0].images[0]) == 5


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([{"question": "q", "answer": "a"}])
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"\(test, train\)"):
        Pool.open(tmp_path / "both")
    assert len(Pool.open(tmp_path / "both" / "train")) == 1
