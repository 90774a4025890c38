"""Finds the record that a user names by id or by position."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ostlight.errors import DataError
from ostlight.reporting.number_format import clipped

POSITION = re.compile(r"#(\d+)")
NEAREST = 5
SIMILARITY = 0.8
"""Similarity of two ids (difflib's ratio) from which one is suggested for the other."""
SEARCHED = 20_000
"""Ids that are compared, which takes a second."""


def find_record(table: pa.Table, wanted: str) -> dict[str, Any]:
    """Returns the row of the record with this id, or at this position (``#12``, from 0).

    Records that could not be read have no id in the scores; they are found by position.

    Args:
        table: all rows of the scores, by position.

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
    if rows:
        return dict(rows[0])
    ids = [i for i in table["id"].to_pylist() if i is not None]
    near = nearest_ids(ids, wanted)
    hint = f"the nearest ids: {', '.join(near)}" if near else f"no id is similar; ids look like {', '.join(ids[:1])}"
    if unnamed:
        hint += f"; name the {len(unnamed):,} records without an id by position, as #{unnamed[0]['position']}"
    raise DataError(f"no sample {clipped(wanted, 100)!r} among the {len(ids):,} of this run; {hint}")


def nearest_ids(ids: Sequence[str], wanted: str) -> list[str]:
    """The few ids that contain it, else the few that are most like it."""
    containing = [i for i in ids if wanted.lower() in i.lower()][:NEAREST]
    return containing or difflib.get_close_matches(wanted, ids[:SEARCHED], n=NEAREST, cutoff=SIMILARITY)
