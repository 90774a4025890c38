"""Records that were rejected, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.data.checked_parquet import check_parquet, read_parquet, write_parquet
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord, reading_back


@dataclass(frozen=True, slots=True)
class Row:
    """One record rejected in one stage.

    Attributes:
        position: index in the pool, from 0.
        id: ``None`` where the record could not be read that far.
        file: that holds the record.
        record: its number there, from 1.
        field: the field at fault, ``None`` where it is the record as a whole.
        reason: short code, see ``BadRecord``.
        detail: what was found and how to fix it.
        stage: that needed the record (``score``, ``train``).
    """

    position: int
    id: str | None
    file: str
    record: int
    field: str | None
    reason: str
    detail: str
    stage: str

    @property
    def name(self) -> str:
        """As messages name the record: ``train.jsonl:record 17 (id a7)``; by id or position where its file is not
        known."""
        if not self.file:
            return f"#{self.position}" if self.id is None else self.id
        named = "" if self.id is None else f" (id {self.id})"
        return f"{self.file.rpartition('/')[2]}:record {self.record}{named}"


SCHEMA = pa.schema([(f.name, pa.int64() if f.type == "int" else pa.string()) for f in fields(Row)])


class Quarantine:
    """The rejected records of all stages, one row for each position and stage: the first reason is kept."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[tuple[int, str], Row] = {}
        for row in rows:
            self._rows.setdefault((row.position, row.stage), row)

    def add(self, pool: Pool, position: int, bad: BadRecord, *, stage: str, id: str | None = None) -> None:
        """Add a record of the pool."""
        file, number = pool.locate(position)
        row = Row(int(position), id, str(file), number, bad.field, bad.reason, bad.detail, stage)
        self._rows.setdefault((row.position, stage), row)

    def counts(self) -> dict[str, int]:
        """Records by reason, most frequent first; a record rejected in several stages counts once."""
        first: dict[int, str] = {}
        for row in self:
            first.setdefault(row.position, row.reason)
        return dict(Counter(first.values()).most_common())

    def write(self, path: str | Path) -> None:
        """Write ``quarantine.parquet``, rows by position; whole or not at all. No rows make an empty file."""
        rows = [asdict(row) for row in sorted(self, key=lambda row: (row.position, row.stage))]
        write_parquet(pa.Table.from_pylist(rows, SCHEMA), path)

    @classmethod
    def read(cls, path: str | Path) -> Quarantine:
        """What ``write`` wrote.

        Raises:
            DataError: the file is missing or is no quarantine.
        """
        cure = "`ostlight select` writes it again from the scores"
        table = read_parquet(path, cure, SCHEMA.names)
        with reading_back(path, cure):
            return cls(Row(**row) for row in table.to_pylist())

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())


def write_rejected(pool: Pool, rejected: pa.Table, stage: str, path: str | Path) -> None:
    """Writes ``quarantine.parquet`` with the rejected records of one stage, as ``Quarantine.write`` would.

    Args:
        rejected: ``position``, ``id``, ``reason``, ``field`` and ``detail`` of each, by position.
    """
    file, record = pool.locate_all(rejected["position"].to_numpy())
    columns = {
        **{name: rejected[name] for name in ("position", "id", "field", "reason", "detail")},
        "file": pa.array([str(name) for name in pool.files], pa.string()).take(pa.array(file)),
        "record": pa.array(record),
        "stage": pa.array([stage], pa.string()).take(pa.array(np.zeros(len(rejected), dtype=np.int64))),
    }
    write_parquet(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), path)


def is_listed(rejected: pa.Table, stage: str, path: Path) -> bool:
    """Whether a quarantine lists just these records of a stage, for these reasons.

    Args:
        rejected: ``position``, ``reason`` and ``detail`` of each, by position.
    """
    names = ["position", "reason", "detail"]
    try:
        check_parquet(path)
        listed = pq.read_table(path, columns=[*names, "stage"])
    except (OSError, ValueError, pa.ArrowException):
        return False
    listed = listed.filter(pc.equal(listed["stage"], stage)).select(names)
    return bool(rejected.select(names).cast(listed.schema).equals(listed))
