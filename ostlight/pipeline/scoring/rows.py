"""Turns what a selector returned into rows of the score table; every failure is a row with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ostlight.errors import BadRecord, SelectorError
from ostlight.models.batch import Batch
from ostlight.selection.scores import FIXED_FIELDS, FIXED_NAMES, OK, REJECTED

Row = dict[str, Any]


def checked_columns(returned: Any, count: int, selector: str) -> dict[str, Any]:
    """Returns a selector's columns as arrays, with one value (or one fixed-length vector) a sample.

    Raises:
        SelectorError: not a mapping, no ``score``, a wrong length, a reserved name, scores that are not numbers.
    """
    if not isinstance(returned, Mapping):
        raise SelectorError(f"{selector}.score returned {type(returned).__name__}; return a dict with the key 'score'")
    if "score" not in returned:
        raise SelectorError(
            f"{selector}.score returned the columns {', '.join(returned) or 'none'}; 'score' is missing"
        )
    columns: dict[str, Any] = {}
    for name, values in returned.items():
        if name in FIXED_NAMES and name != "score":
            raise SelectorError(f"{selector}.score returned a column {name!r}, which the framework writes; rename it")
        if isinstance(values, torch.Tensor):
            values = values.detach().to("cpu", torch.float64 if values.is_floating_point() else None).numpy()
        if (isinstance(values, np.ndarray) and values.ndim == 0) or not isinstance(values, Sequence | np.ndarray):
            raise SelectorError(f"{selector}.score: column {name!r} is one value; return one for each sample")
        if len(values) != count:
            raise SelectorError(f"{selector}.score: column {name!r} has {len(values)} values for {count} samples")
        columns[name] = values
    try:
        columns["score"] = np.asarray(columns["score"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SelectorError(f"{selector}.score: column 'score' must hold numbers: {error}") from error
    if columns["score"].ndim != 1:
        raise SelectorError(f"{selector}.score: column 'score' has shape {columns['score'].shape}; it takes [samples]")
    return columns


def scored_rows(batch: Batch, columns: Mapping[str, Any]) -> list[Row]:
    """Returns one row a sample; a sample with a score that is not finite is rejected."""
    rows = []
    for i, sample in enumerate(batch.samples):
        row = _row(sample.position, sample.id) | {"tags": list(sample.tags.items())}
        if batch.encoded:
            row |= {"tokens": len(batch.encoded[i]), "answer_cut": batch.encoded[i].answer_cut}
        values = {name: _plain(column[i]) for name, column in columns.items()}
        failure = values.pop("failure", None)
        if failure is None and not np.isfinite(values["score"]):
            failure = BadRecord("score_not_finite", f"the selector's score is {values['score']}")
        rows.append(row | (values if failure is None else _rejection(failure)))
    return rows


def rejected_row(position: int, sample_id: str | None, error: BadRecord) -> Row:
    """Returns the row of a record that cannot be used."""
    return _row(position, sample_id) | _rejection(error)


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Returns a table by position, with the fixed columns first and the extra columns after them.

    Raises:
        SelectorError: values that no column can hold.
    """
    rows = sorted(rows, key=lambda r: r["position"])
    arrays = [pa.array([r.get(f.name) for r in rows], f.type) for f in FIXED_FIELDS]
    names = list({name: None for r in rows for name in r if name not in FIXED_NAMES})
    extra = [_extra_column(name, [r.get(name) for r in rows]) for name in names]
    schema = pa.schema([*FIXED_FIELDS, *(pa.field(n, a.type) for n, a in zip(names, extra, strict=True))])
    return pa.table([*arrays, *extra], schema=schema)


def _extra_column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise SelectorError(
            f"column {name!r} of the selector's score cannot be stored: {error}; return numbers, texts, booleans "
            "or lists of them, of one type for all samples"
        ) from error


def _rejection(error: BadRecord) -> Row:
    return {"state": REJECTED, "reason": error.reason, "field": error.field, "detail": error.detail}


def _row(position: int, sample_id: str | None) -> Row:
    return {"position": position, "id": sample_id, "state": OK, "tags": []}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value  # unchanged: a vector keeps its precision, and its numbers do not become objects one by one
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
