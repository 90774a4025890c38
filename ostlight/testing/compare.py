"""Compares the score tables of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def first_difference(
    expected: Sequence[Row], found: Sequence[Row], tolerance: float, leave_out: set[str | None] | None = None
) -> str | None:
    """Describes the first difference between two score tables, ``None`` if there is none. Rows are matched by id.

    Args:
        tolerance: largest difference of two numbers, as a fraction of the larger one, or of the column's median where
            that is larger still.
        leave_out: ids that may differ.
    """
    ignored = {None} | (leave_out or set())
    found_by_id = {row["id"]: row for row in found}
    rows = [row for row in expected if row["id"] not in ignored]
    for one in rows:
        other = found_by_id.get(one["id"])
        if other is None:
            return f"record {one['id']!r} has no row"
        if one["state"] != other["state"] or one["reason"] != other["reason"]:
            return f"record {one['id']!r} was {one['reason'] or 'scored'}, then {other['reason'] or 'scored'}"
    scored = [(one, found_by_id[one["id"]]) for one in rows if one["state"] == "ok"]
    for name in [k for k in expected[0] if k not in ("position", "id", "state", "reason", "field", "detail", "tags")]:
        message = _column_difference(name, scored, tolerance)
        if message:
            return message
    return None


def _column_difference(name: str, pairs: Sequence[tuple[Row, Row]], tolerance: float) -> str | None:
    numbers = [abs(x) for one, _ in pairs if _numeric(one[name]) for x in np.ravel(one[name]) if np.isfinite(x)]
    scale = float(np.median(numbers)) if numbers else 0.0  # not the largest, beside which any other would be nothing
    for one, other in pairs:
        a: Any = one[name]
        b: Any = other.get(name)
        if _numeric(a) and _numeric(b) and np.shape(a) == np.shape(b):
            left, right = np.array(a, float), np.array(b, float)
            same = np.allclose(left, right, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        else:
            same = a == b
        if not same:
            return f"column {name!r} of record {one['id']!r} was {a!r:.60}, then {b!r:.60}"
    return None


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_numeric(v) for v in value)
    return isinstance(value, int | float)
