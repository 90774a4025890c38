"""Records from memory, written as a file that every stage, process and later run reads."""

from __future__ import annotations

import base64
import datetime
import decimal
import filecmp
import hashlib
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image as PILImage

from ostlight.data.atomic import atomic_folder
from ostlight.data.formats.columns import repeated_names
from ostlight.errors import DataError
from ostlight.progress import phase

log = logging.getLogger(__name__)

RECORDS = (".jsonl", ".arrow")
"""Endings of files with records; others describe them, and may say when that was."""

CHUNK_ROWS = 1_000
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_KEY_CHARACTERS = 16


def write_records(records: Any, folder: Path, where: str) -> tuple[Path, bool]:
    """Writes records to ``folder/WHERE-HASH``, named by what they hold; the same records are written once.

    A ``datasets.Dataset`` is written by its own ``save_to_disk``, with its features; everything else as JSON lines,
    with PIL images (losslessly, as PNG, or TIFF where PNG has not their mode) and bytes in base64. What becomes of the
    objects afterwards changes nothing. Processes that write the same at once do not disturb each other.

    Args:
        records: a ``datasets.Dataset``, a list of mappings, a pandas DataFrame (a missing value is null), or a table
            that Arrow reads (``pyarrow.Table``, polars).
        folder: made if missing.
        where: the setting they are for (``pool``), for names and messages.

    Returns:
        The file or folder to read them from, and whether it was written now.

    Raises:
        DataError: another type; no record; a record that is no mapping, or that holds what no file can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{where}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with phase(f"writing the records of {where}"):
            temporary.mkdir()
            name, digest = _write(records, temporary, where)
        target = folder / f"{where}-{digest[:_KEY_CHARACTERS]}"
        is_new = not target.exists()
        if is_new:
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        elif damaged := _first_other(temporary, target):
            log.warning(f"{damaged} is not what was written there; it is written again")
            with atomic_folder(target) as again:
                shutil.copytree(temporary, again, dirs_exist_ok=True)
        return target / name, is_new
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _first_other(written: Path, before: Path) -> Path | None:
    """The first file with records in ``before`` that is missing, or not the one in ``written``."""
    files = (file for file in sorted(written.rglob("*")) if file.suffix in RECORDS)
    there = ((file, before / file.relative_to(written)) for file in files)
    return next((old for new, old in there if not (old.is_file() and filecmp.cmp(new, old, shallow=False))), None)


def _write(records: Any, folder: Path, where: str) -> tuple[str, str]:
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(records).__mro__}
    if "datasets.Dataset" in kinds:
        return _write_dataset(records, folder, where)
    if kinds & {"datasets.DatasetDict", "datasets.IterableDatasetDict"}:
        raise DataError(f"{where} is a DatasetDict; give one of its splits: {where}=dataset[{next(iter(records))!r}]")
    if isinstance(records, Iterator) or "datasets.IterableDataset" in kinds:
        raise DataError(
            f"{where} is a {type(records).__name__}, which is read once and may never end; give a list, or write it to "
            f"a file and name that as {where}.path"
        )
    return _write_json_lines(_rows(records, kinds, where), folder, where)


def _write_dataset(dataset: Any, folder: Path, where: str) -> tuple[str, str]:
    if dataset.format["type"] == "custom":
        raise DataError(
            f"{where} is a Dataset with a transform, whose records are stored nowhere; apply it with map() first, or "
            "remove it with reset_format()"
        )
    if not len(dataset):
        raise DataError(f"{where} holds no record")
    import datasets

    data = folder / where
    enabled = datasets.utils.is_progress_bar_enabled()
    datasets.utils.disable_progress_bars()
    try:
        dataset.save_to_disk(str(data))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{where}: the Dataset cannot be written: {' '.join(str(error).split())[:300]}") from error
    finally:
        if enabled:
            datasets.utils.enable_progress_bars()
    digest = hashlib.sha256(repr(dataset.features).encode())
    for file in sorted(data.glob("*.arrow")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return where, digest.hexdigest()


def _rows(records: Any, kinds: set[str], where: str) -> Iterable[Any]:
    if "pandas.DataFrame" in kinds:
        _refuse_repeated([str(name) for name in records.columns], where)
        return _rows_of_frame(records)
    if isinstance(records, list | tuple):
        return records
    if hasattr(records, "__arrow_c_stream__"):
        table = pa.table(records)
        _refuse_repeated(table.column_names, where)
        return (row for batch in table.to_batches(max_chunksize=CHUNK_ROWS) for row in batch.to_pylist())
    named = "; of columns make a DataFrame or Dataset.from_dict(...)" if isinstance(records, Mapping) else ""
    raise DataError(
        f"{where} is a {type(records).__name__}; give a list of dicts, a datasets.Dataset or a DataFrame{named}, or "
        f"the path of a file as {where}.path"
    )


def _refuse_repeated(names: Sequence[str], where: str) -> None:
    """Raises:
    DataError: several columns have one name, and one of them would be lost.
    """
    if repeated := repeated_names(names):
        raise DataError(f"{where}: several columns are called {', '.join(map(repr, repeated))}; rename all but one")


def _rows_of_frame(frame: Any) -> Iterator[dict[str, Any]]:
    import pandas as pd  # type: ignore[import-untyped]

    names = [str(name) for name in frame.columns]
    for begin in range(0, len(frame), CHUNK_ROWS):
        part = frame.iloc[begin : begin + CHUNK_ROWS]
        for values in zip(*(part.iloc[:, k].tolist() for k in range(len(names))), strict=True):
            cells = (None if pd.api.types.is_scalar(value) and pd.isna(value) else value for value in values)
            yield dict(zip(names, cells, strict=True))


def _write_json_lines(rows: Iterable[Any], folder: Path, where: str) -> tuple[str, str]:
    digest, count = hashlib.sha256(), 0
    file = folder / f"{where}.jsonl"
    with file.open("wb") as opened:
        for count, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise DataError(f"{where}[{count - 1}] is no record: a mapping is expected, got {type(row).__name__}")
            line = _line(row, f"{where}[{count - 1}]") + b"\n"
            digest.update(line)
            opened.write(line)
        opened.flush()
        os.fsync(opened.fileno())
    if not count:
        raise DataError(f"{where} holds no record")
    return file.name, digest.hexdigest()


def _line(row: Mapping[str, Any], where: str) -> bytes:
    try:
        return _json(row)
    except _REFUSED as error:
        for field, value in row.items():
            try:
                _json({field: value})
            except _REFUSED as of_field:
                raise DataError(f"{where}, field {field!r}: {' '.join(str(of_field).split())[:200]}") from of_field
        raise DataError(f"{where}: {' '.join(str(error).split())[:200]}") from error


_REFUSED = (TypeError, ValueError, OSError, RecursionError, SyntaxError)
"""What JSON and PIL raise for what they cannot write."""


def _json(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, default=_plain, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half characters, which files hold as escapes
        return json.dumps(row, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, PILImage.Image):
        return _data_address(_encoded(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _data_address(bytes(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        if getattr(value, "ndim", 0) > 1:
            raise TypeError("an array of several dimensions; an image is given as PIL.Image.fromarray(array)")
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written to a file")


def _encoded(image: PILImage.Image) -> bytes:
    """The pixels as they are in memory; an orientation in the EXIF data is not applied."""
    encoded = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(encoded, "PNG", compress_level=1)
    else:
        image.save(encoded, "TIFF")
    return encoded.getvalue()


def _data_address(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
