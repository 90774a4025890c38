"""Tables that claim what they do not hold are refused on opening; large rows are rejected without being unpacked."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.config.schema import Limits
from ostlight.data.formats import parquet
from ostlight.data.formats.columns import unpacked_bytes
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError

ROWS = [{"id": str(n), "question": f"q{n}", "answer": f"a{n}"} for n in range(6)]


def reasons(pool: Pool) -> list[str]:
    return [getattr(record, "reason", "read") for _, record in pool.read(range(len(pool)))]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
def test_a_subset_of_any_compression_is_written(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression=compression)
    (written,) = write_subset(Pool.open(path), [4, 1], tmp_path / "subset")
    assert pq.read_table(written).to_pylist() == [ROWS[4], ROWS[1]]
    before, after = (pq.ParquetFile(file).metadata.row_group(0).column(0).compression for file in (path, written))
    assert after == before


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"]), pa.array(["q"])], names=["id", "id", "question"])
    pq.write_table(table, path)
    with pytest.raises(DataError, match="called id") as caught:
        Pool.open(path)
    assert caught.value.path == path


@pytest.mark.parametrize("nested", [False, True])
def test_a_value_stored_once_for_many_rows_is_not_unpacked(
    tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,000 rows of 2 MB are 8 GB; the file has a few KB."""
    large = "x" * 2_000_000
    indices = pa.array([0] * 4_000, pa.int32())
    values = pa.DictionaryArray.from_arrays(indices, pa.array([large]))
    column = pa.ListArray.from_arrays(pa.array(range(4_001), pa.int32()), values) if nested else values
    plain = pa.array([f"q{n}" for n in range(4_000)])
    table = pa.table({"question": plain, "answer": plain, "extra": column})
    file = io.BytesIO()
    pq.write_table(table, file, store_schema=False, compression="zstd")
    (tmp_path / "pool.parquet").write_bytes(file.getvalue())
    assert len(file.getvalue()) < 100_000
    assert pq.ParquetFile(file).schema_arrow.field("extra").type == (pa.list_(pa.string()) if nested else pa.string())
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="record_bytes"):
        Pool.open(tmp_path / "pool.parquet", limits=Limits(record_bytes=1_000_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_a_row_over_the_limit_is_rejected_and_the_rest_is_read(tmp_path: Path, jsonl: Callable) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2]["answer"] = "x" * 5_000
    limits = Limits(record_bytes=2_000)
    expected = ["read", "read", "record_too_large", "read", "read", "read"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "pool.json").write_text(json.dumps(rows))
    for path in (tmp_path / "pool.parquet", tmp_path / "saved", tmp_path / "pool.json", jsonl(*rows)):
        pool = Pool.open(path, limits=limits)
        assert reasons(pool) == expected
        (_, bad), *_ = pool.read([2])
        assert "2,000" in str(bad)
        assert [s.answer for _, s in pool.read([1, 3]) if isinstance(s, Sample)] == ["a1", "a3"]


def test_bytes_of_nested_and_packed_values() -> None:
    texts = pa.array(["aa", "b", None, "aa"])
    packed = texts.dictionary_encode()
    assert unpacked_bytes(packed) == 5
    assert unpacked_bytes(packed.slice(3, 1)) == 2
    rows = pa.table({"turns": pa.array([[{"value": "a" * 100}], [], [{"value": "b" * 1_000}]])})
    assert [unpacked_bytes(rows.slice(n, 1)) > 1_000 for n in range(3)] == [False, False, True]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    turns = [[{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}] for n in range(6)]
    datasets.Dataset.from_list([{"conversations": two} for two in turns]).save_to_disk(path)
    return path


def test_offsets_that_lead_out_of_their_buffer_are_refused_before_they_are_followed(saved: Path) -> None:
    (file,) = saved.glob("*.arrow")
    content = bytearray(file.read_bytes())
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6))  # where each text begins
    at = content.index(offsets)
    content[at : at + 4] = (-83_886_080).to_bytes(4, "little", signed=True)
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged") as caught:
        Pool.open(saved)
    assert caught.value.path == file


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "[]"),
        ("state.json", "{}"),
        ("state.json", "null"),
        ("dataset_info.json", "\udcff{"),
        ("dataset_info.json", "[1]"),
        ("state.json", '{"_data_files": [{"filename": "../other.arrow"}]}'),
        ("state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}'),
        ("state.json", '{"_data_files": [{"filename": 7}]}'),
        ("state.json", '{"_data_files": []}'),
    ],
)
def test_a_folder_that_describes_itself_wrongly_is_refused(saved: Path, file: str, content: str) -> None:
    (saved / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        Pool.open(saved)


def test_a_text_that_is_no_utf8_costs_its_own_row_only(tmp_path: Path) -> None:
    answers = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"question": ["q"] * 3, "answer": answers}), path)
    found = dict(Pool.open(path).read(range(3)))
    assert [getattr(found[n], "field", "read") for n in range(3)] == ["read", "answer", "read"]
    assert isinstance(found[1], BadRecord)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("has_dictionary", [False, True])
def test_compressed_arrow_files_are_refused_before_they_are_unpacked(
    saved: Path, compression: str, has_dictionary: bool
) -> None:
    (file,) = saved.glob("*.arrow")
    large = pa.array(["x" * 50_000_000], pa.string())
    table = pa.table({"question": ["q"], "answer": large.dictionary_encode() if has_dictionary else large})
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="compressed") as caught:
        Pool.open(saved)
    assert caught.value.path == file
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


@pytest.mark.parametrize("size", [5, 2**20])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_a_page_that_claims_another_size_is_refused(tmp_path: Path, compression: str, size: int) -> None:
    path = tmp_path / "pool.parquet"
    texts = [f"text {n}" * 9 for n in range(400)]
    pq.write_table(pa.table({"question": texts, "answer": texts}), path, compression=compression, use_dictionary=False)
    raw, place = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    assert raw[place : place + 1] + raw[place + 2 : place + 3] == b"\x15\x15"
    stop = next(k for k in range(place + 3, place + 13) if raw[k] < 0x80) + 1
    claimed = bytes(0x80 | (2 * size) >> 7 * k & 0x7F for k in range(stop - place - 4)) + b"\x7f"
    path.write_bytes(raw[: place + 3] + claimed + raw[stop:])
    with pytest.raises(DataError):
        Pool.open(path)
