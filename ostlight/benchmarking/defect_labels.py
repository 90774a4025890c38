"""The table of known defects: which record of a pool has which."""

from __future__ import annotations

from ostlight.data.checked_parquet import read_parquet
from ostlight.data.formats.source import own_id
from ostlight.errors import DataError

CLEAN = (None, "", "clean")
"""How a table of defect labels marks a record without a defect."""


def read_defect_labels(path: str, cure: str = "write it again") -> dict[str, str | None]:
    """Returns the defect by id, of all records of the table.

    Args:
        cure: what to do about a damaged file.

    Raises:
        DataError: the file is damaged, an id is missing or stands there twice, or a defect is no text.
    """
    table = read_parquet(path, cure)
    if not {"id", "defect"} <= set(table.column_names):
        raise DataError(f"defect labels: {path} must have columns id and defect; it has {table.column_names}")
    labels: dict[str, str | None] = {}
    for row, (given, defect) in enumerate(zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True)):
        where, id = f"defect labels: {path}, row {row}", own_id({"id": given})
        if id is None:
            raise DataError(f"{where}: {given!r} is no id")
        if id in labels:
            raise DataError(f"{where}: the id {id!r} stands there twice")
        if defect is not None and not isinstance(defect, str):
            raise DataError(f"{where}: a defect is its name as text, null where the record is clean; got {defect!r}")
        labels[id] = defect
    return labels
