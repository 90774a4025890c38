"""The small pool selectors are checked on: DigitMath with every tenth record broken."""

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
CORRUPT_PICTURE, EMPTY_ANSWER, DOUBLE_ID = 4, 14, 24
"""Positions of the broken records."""
UNREADABLE = 6
"""Records of the pool without one that can be used."""


@dataclass(frozen=True)
class Pools:
    """Files of one check.

    Attributes:
        pool: ``RECORDS`` records, one each with a corrupt picture, an empty answer, and the id of the one before it.
        backwards: the same records in reverse, the same one of the two with one id first.
        unreadable: ``UNREADABLE`` records with empty answers.
        anchors: trusted samples, with the tag ``task``.
    """

    pool: Path
    backwards: Path
    unreadable: Path
    anchors: Path

    @classmethod
    def make(cls, folder: Path) -> Pools:
        """Writes them into a folder, where they are not there yet."""
        clean = Files.in_folder(folder / "clean")
        written = [folder / f"{name}.parquet" for name in ("pool", "backwards", "unreadable")]
        pools = cls(written[0], written[1], written[2], clean.anchors)
        if all(p.exists() for p in vars(pools).values()):
            return pools
        build(DigitMath(pool=RECORDS, anchors=14, dev=7, test=7), folder / "clean")
        schema, rows = pq.read_schema(clean.pool), pq.read_table(clean.pool).to_pylist()
        rows[CORRUPT_PICTURE]["image"]["bytes"] = b"no picture"
        rows[EMPTY_ANSWER] = _unanswered(rows[EMPTY_ANSWER])
        rows[DOUBLE_ID]["id"] = rows[DOUBLE_ID - 1]["id"]
        _write(pools.pool, rows, schema)
        _write(pools.backwards, _backwards(rows), schema)
        _write(pools.unreadable, [_unanswered(row) for row in rows[:UNREADABLE]], schema)
        return pools


def _backwards(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In reverse, but for the double id: the first to have it is read, and that stays the same record."""
    turned = rows[::-1]
    first = RECORDS - 1 - DOUBLE_ID
    turned[first : first + 2] = rows[DOUBLE_ID - 1 : DOUBLE_ID + 1]
    return turned


def _unanswered(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = row["conversations"]
    return row | {"conversations": [question, answer | {"value": ""}]}


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
