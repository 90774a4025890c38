"""The small pool that selectors are checked on: DigitMath with every tenth record broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.config.digitmath import DigitMath
from ostlight.data.atomic import atomic_path
from ostlight.digitmath.build import Files, build

RECORDS = 30
CORRUPT_IMAGE, EMPTY_ANSWER, DUPLICATE_ID = 4, 14, 24
"""Positions of the broken records."""
UNUSABLE = 6
"""Size of the pool in which no record can be used."""


@dataclass(frozen=True)
class PoolFiles:
    """Files that a check runs on.

    Attributes:
        pool: ``RECORDS`` records; one has a corrupt image, one an empty answer, one the id of the record before it.
        reversed: the same records in reverse order.
        unusable: ``UNUSABLE`` records, all with empty answers.
        anchors: trusted samples with the tag ``task``.
    """

    pool: Path
    reversed: Path
    unusable: Path
    anchors: Path

    @classmethod
    def create(cls, folder: Path) -> PoolFiles:
        """Writes the files into a folder, unless they exist there."""
        clean = Files.in_folder(folder / "clean")
        written = [folder / f"{name}.parquet" for name in ("pool", "reversed", "unusable")]
        pools = cls(written[0], written[1], written[2], clean.anchors)
        if all(p.exists() for p in vars(pools).values()):
            return pools
        build(DigitMath(pool=RECORDS, anchors=14, dev=7, test=7), folder / "clean")
        schema, rows = pq.read_schema(clean.pool), pq.read_table(clean.pool).to_pylist()
        rows[CORRUPT_IMAGE]["image"]["bytes"] = b"not an image"
        rows[EMPTY_ANSWER] = _without_answer(rows[EMPTY_ANSWER])
        rows[DUPLICATE_ID]["id"] = rows[DUPLICATE_ID - 1]["id"]
        _write(pools.pool, rows, schema)
        _write(pools.reversed, _reversed(rows), schema)
        _write(pools.unusable, [_without_answer(row) for row in rows[:UNUSABLE]], schema)
        return pools


def _reversed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reverses all but the two records with the same id: the first of them is read, so it must stay first."""
    turned = rows[::-1]
    first = RECORDS - 1 - DUPLICATE_ID
    turned[first : first + 2] = rows[DUPLICATE_ID - 1 : DUPLICATE_ID + 1]
    return turned


def _without_answer(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = row["conversations"]
    return row | {"conversations": [question, answer | {"value": ""}]}


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
