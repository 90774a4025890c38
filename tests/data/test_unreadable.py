"""A value that a library cannot read costs its own record alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord

FAR = 2**62
"""Microseconds: the year 148108, beyond what Python's dates reach."""


def table(ids: pa.Array | None, **columns: pa.Array) -> pa.Table:
    messages = [[{"role": "user", "content": f"q{k}"}, {"role": "assistant", "content": f"a{k}"}] for k in range(3)]
    return pa.table({"messages": messages, **({} if ids is None else {"id": ids}), **columns})


def broken_text(texts: list[bytes]) -> pa.Array:
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(texts), binary.buffers())


DATES = pa.array([1, FAR, 3], pa.timestamp("us"))
TEXTS = broken_text([b"one", b"\xff\xfe", b"three"])


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (table(pa.array(["a", "b", "c"]), made=DATES), "made"),
        (table(None, made=DATES), "made"),
        (table(pa.array(["a", "b", "c"]), note=TEXTS), "note"),
        (table(None, note=TEXTS), "note"),
        (table(TEXTS), "id"),
    ],
    ids=["date", "date, no id", "text", "text, no id", "id"],
)
def test_the_record_alone_is_rejected_and_its_column_named(rows: pa.Table, field: str, tmp_path: Path) -> None:
    pq.write_table(rows, tmp_path / "pool.parquet")
    pool = Pool.open(tmp_path / "pool.parquet")
    first, second, third = (read for _, read in pool.read(range(3)))
    assert isinstance(first, Sample)
    assert isinstance(third, Sample)
    assert (first.answer, third.answer) == ("a0", "a2")
    assert isinstance(second, BadRecord)
    assert (second.reason, second.field) == ("unreadable_record", field)
