"""Finds the record that a user names by id or by position."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ostlight.data.formats.source import given_id
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord, DataError
from ostlight.reporting.number_format import clipped

POSITION = re.compile(r"#(\d+)")
NEAREST = 5
SIMILARITY = 0.8
"""Similarity of two ids (difflib's ratio) from which one is suggested for the other."""


def find_record(table: pa.Table, wanted: str, pool: Pool | None) -> dict[str, Any]:
    """Returns the row of the record with this id, or at this position (``#12``, from 0).

    Records that could not be read have no id in the scores; the id that the pool's file gives counts.

    Args:
        table: all rows of the scores, by position.
        pool: the records, if they can be opened.

    Raises:
        DataError: there is no such record; names the nearest ids.
    """
    position = POSITION.fullmatch(wanted)
    rows = table.filter(pc.equal(table["id"], pa.scalar(wanted))).to_pylist()
    if not rows and position:
        rows = table.filter(pc.equal(table["position"], int(position.group(1)))).to_pylist()
        if not rows:
            raise DataError(f"no record {wanted}; the {len(table):,} of this run begin at #0")
    unnamed = table.filter(pc.is_null(table["id"])).to_pylist()
    if not rows and pool is not None:
        rows = [row for row in unnamed if _id_in_file(pool, row["position"]) == wanted]
    if rows:
        return dict(rows[0])
    ids = [i for i in table["id"].to_pylist() if i is not None]
    near = nearest_ids(ids, wanted)
    hint = f"the nearest ids: {', '.join(near)}" if near else f"no id is similar; ids look like {', '.join(ids[:1])}"
    if unnamed:
        hint += f"; name the {len(unnamed):,} records without an id by position, as #{unnamed[0]['position']}"
    raise DataError(f"no sample {clipped(wanted, 100)!r} among the {len(ids):,} of this run; {hint}")


def _id_in_file(pool: Pool, position: int) -> str | None:
    """The id a record gives itself; ``None`` where it has none or is no record."""
    source, index = pool.source_of(position)
    try:
        return given_id(pool.sources[source].record(index))
    except BadRecord:
        return None


def nearest_ids(ids: Sequence[str], wanted: str) -> list[str]:
    """The few most similar ids: those that contain it, else the most similar of those with the longest common start."""
    if containing := [i for i in ids if wanted.lower() in i.lower()][:NEAREST]:
        return containing
    for letters in range(min(len(wanted), 8), -1, -2):
        candidates = [i for i in ids if i.startswith(wanted[:letters])]
        if near := difflib.get_close_matches(wanted, candidates[:20_000], n=NEAREST, cutoff=SIMILARITY):
            return near
    return []
