"""Finds the record that is meant by what a user types."""

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
from ostlight.reporting.figures import clipped

PLACE = re.compile(r"#(\d+)")
NEAREST = 5
ALIKE = 0.8
"""Of an id's letters, those that must be the wanted one's for it to be named (difflib's ratio)."""


def find(table: pa.Table, wanted: str, pool: Pool | None) -> dict[str, Any]:
    """The row of the record with this id, or at this place (``#12``, from 0).

    Records that could not be read have no id in the scores; what the pool says of theirs counts.

    Args:
        table: all rows of the scores, by position.
        pool: where the records lie, if it is at hand.

    Raises:
        DataError: there is none; names the nearest ids.
    """
    if found := table.filter(pc.equal(table["id"], pa.scalar(wanted))).to_pylist():
        return found[0]
    if place := PLACE.fullmatch(wanted):
        if found := table.filter(pc.equal(table["position"], int(place.group(1)))).to_pylist():
            return found[0]
        raise DataError(f"no record {wanted}; the {len(table):,} of this run begin at #0")
    unnamed = table.filter(pc.is_null(table["id"])).to_pylist()
    for row in unnamed:
        if pool is not None and _said(pool, row["position"]) == wanted:
            return row
    ids = [i for i in table["id"].to_pylist() if i is not None]
    by_place = f"; {len(unnamed):,} without an id go by their place, as #{unnamed[0]['position']}" if unnamed else ""
    near = nearest_ids(ids, wanted)
    told = f"the nearest ids: {', '.join(near)}" if near else f"none is like it, ids are such as {', '.join(ids[:1])}"
    raise DataError(f"no sample {clipped(wanted, 100)!r} among the {len(ids):,} of this run; {told}{by_place}")


def _said(pool: Pool, position: int) -> str | None:
    """The id a record gives itself; ``None`` where it has none or is no record."""
    source, place = pool.source_of(position)
    try:
        return given_id(pool.sources[source].record(place))
    except BadRecord:
        return None


def nearest_ids(ids: Sequence[str], wanted: str) -> list[str]:
    """The few most like it: those that hold it first, then by common letters among those that begin alike."""
    holding = [i for i in ids if wanted.lower() in i.lower()][:NEAREST]
    if holding:
        return holding
    for letters in range(min(len(wanted), 8), -1, -2):
        alike = [i for i in ids if i.startswith(wanted[:letters])]
        near = difflib.get_close_matches(wanted, alike[:20_000], n=NEAREST, cutoff=ALIKE)
        if near:
            return near
    return []
