"""Whether two runs gave the same table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


def difference(expected: Rows, found: Rows, tolerance: float, leave_out: set[str | None] | None = None) -> str | None:
    """The first difference in words, ``None`` where there is none. Rows are matched by id.

    Args:
        tolerance: how far numbers may lie apart, as a part of the column's largest.
        leave_out: ids that may differ.
    """
    left_out = leave_out or set()
    there = {row["id"]: row for row in found if row["id"] is not None and row["id"] not in left_out}
    rows = [row for row in expected if row["id"] is not None and row["id"] not in left_out]
    pairs = [(row, there[row["id"]]) for row in rows if row["id"] in there]
    if len(pairs) < len(rows):
        return f"record {next(r['id'] for r in rows if r['id'] not in there)!r} has no row"
    for one, other in pairs:
        if one["state"] != other["state"] or one["reason"] != other["reason"]:
            return f"record {one['id']!r} was {_state(one)}, then {_state(other)}"
    scored = [(one, other) for one, other in pairs if one["state"] == "ok"]
    for name in [k for k in expected[0] if k not in ("position", "id", "state", "reason", "field", "detail", "tags")]:
        told = _column(name, scored, tolerance)
        if told:
            return told
    return None


def _column(name: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], tolerance: float) -> str | None:
    numbers = [abs(x) for one, _ in pairs for x in _flat(one[name])]
    scale = max(numbers, default=0.0)
    for one, other in pairs:
        a: Any = one[name]
        b: Any = other.get(name)
        if _numeric(a) and _numeric(b) and np.shape(a) == np.shape(b):
            same = np.allclose(np.array(a, float), np.array(b, float), rtol=0, atol=tolerance * scale, equal_nan=True)
        else:
            same = a == b
        if not same:
            return f"column {name!r} of record {one['id']!r} was {_short(a)}, then {_short(b)}"
    return None


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_numeric(v) for v in value)
    return isinstance(value, int | float)


def _flat(value: Any) -> list[float]:
    return [float(x) for x in np.ravel(value) if np.isfinite(x)] if _numeric(value) else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _state(row: Mapping[str, Any]) -> str:
    return "scored" if row["state"] == "ok" else f"set aside ({row['reason']})"
