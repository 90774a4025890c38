"""Parquet and JSON with checksums: one other byte is noticed, and other programs read the files as ever."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.config.read import read_mapping, with_checksum
from ostlight.data.checked_json import read_json, write_json
from ostlight.data.checked_parquet import is_whole, read_metadata, read_parquet, write_parquet
from ostlight.errors import DataError
from ostlight.models.cost import StageCost
from ostlight.pipeline.cost_log import CostLog

TABLE = pa.table({"number": np.arange(300), "text": [f"row {k}" for k in range(300)]}).replace_schema_metadata(
    {"a": "b"}
)


def with_other_bit(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_parquet_with_a_checksum_is_parquet(tmp_path: Path):
    file = tmp_path / "table.parquet"
    write_parquet(TABLE, file)
    assert is_whole(file)
    assert read_parquet(file, "").equals(TABLE)
    assert read_parquet(file, "", ["number"], [("number", ">=", 299)]).to_pydict() == {"number": [299]}
    assert read_metadata(file, "")[b"a"] == b"b"
    assert pq.read_table(file).equals(TABLE)
    assert duckdb.sql(f"SELECT sum(number), max(text) FROM '{file}'").fetchall() == [(44850, "row 99")]


def test_parquet_with_one_other_bit_is_damaged_wherever_it_is(tmp_path: Path):
    file = tmp_path / "table.parquet"
    write_parquet(TABLE, file)
    whole = file.read_bytes()
    begin = whole.index(b"ostlight crc32")
    checksum, end = range(begin, begin + 24), range(len(whole) - 8, len(whole))
    for place in {*range(0, len(whole), 7), *checksum, *end}:
        file.unlink()
        file.write_bytes(with_other_bit(whole, place))
        assert not is_whole(file), place
    with pytest.raises(DataError) as caught:
        read_parquet(file, "write it again")
    assert caught.value.path == file


def test_parquet_of_other_programs_is_taken_as_it_is(tmp_path: Path):
    pq.write_table(TABLE, tmp_path / "plain.parquet")
    assert read_parquet(tmp_path / "plain.parquet", "").equals(TABLE)
    (tmp_path / "short.parquet").write_bytes(b"PAR1")
    assert not is_whole(tmp_path / "short.parquet")
    assert not is_whole(tmp_path / "missing.parquet")


def test_a_digit_that_changed_in_json_is_noticed(tmp_path: Path):
    file = tmp_path / "values.json"
    values = {"b": [1.5, None, float("inf")], "a": {"1": "x"}, "none": {}}
    write_json(file, values)
    assert read_json(file) == values
    file.write_text(file.read_text().replace("1.5", "1.6"))
    with pytest.raises(ValueError, match="not what was written"):
        read_json(file)
    file.write_text(json.dumps({"b": 2}))
    assert read_json(file) == {"b": 2}


def test_a_line_of_the_cost_log_with_another_digit_is_left_out(tmp_path: Path, logged):
    log = CostLog(tmp_path / "cost_log.jsonl")
    log.add(StageCost("score", flops=1234.0))
    log.add(StageCost("train", flops=5678.0))
    assert [cost.flops for cost in log.read()] == [1234.0, 5678.0]
    log.path.write_text(log.path.read_text().replace("1234.0", "1235.0"))
    assert [cost.flops for cost in log.read()] == [5678.0]
    assert "1 lines are damaged" in logged()
    log.path.unlink()
    assert log.read() == []
    assert logged() == ""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "warmup.json").write_text("{}")
    assert log.read() == []
    assert f"{log.path} is missing" in logged()


@pytest.mark.parametrize("cut", [False, True])
def test_a_configuration_that_is_not_what_was_written_is_told(tmp_path: Path, cut: bool, logged):
    file = tmp_path / "config.yaml"
    text = with_checksum("# Repeat this run\nname: a\nseed: 1\n")
    file.write_text(text)
    assert read_mapping(file) == {"name": "a", "seed": 1}
    assert logged() == ""
    file.write_text(text.removesuffix("seed: 1\n") if cut else text.replace("seed: 1", "seed: 3"))
    assert read_mapping(file)["name"] == "a"
    assert str(file) in logged()
    file.write_text("name: a\n")
    assert read_mapping(file) == {"name": "a"}
    assert logged() == ""
