"""A written subset as a ``datasets.Dataset``, of whatever format its files are."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ostlight.data.formats import HuggingFaceFolder, Parquet, Source, open_source
from ostlight.data.images import ImageRoot
from ostlight.data.pool import Pool
from ostlight.data.record import IMAGE_FIELDS, RecordReader
from ostlight.data.subset import subset_files
from ostlight.errors import BadRecord, DataError

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_RECORDS = 10_000


def subset_dataset(pool: Pool, positions: np.ndarray, folder: Path) -> Dataset:
    """The records of a subset, row ``k`` for ``positions[k]``.

    Args:
        pool: that the subset was made of.
        positions: of the kept records, in the order they were written in.
        folder: that ``write_subset`` wrote.

    Returns:
        Of Parquet files and ``save_to_disk`` folders their own features, mapped from disk. Of other formats the fields
        of the records, in memory; ``image`` and ``images`` (or those that ``pool.columns`` names) are
        ``datasets.Image``, decoded when they are read.

    Raises:
        DataError: the package ``datasets`` is not installed; records that fit into no table, since a field is of
            several types.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"the subset as a Dataset needs a package: pip install datasets; its files are in {folder}")
    import datasets

    file_of, _ = pool.locate_all(positions)
    targets = subset_files(pool, folder)
    parts = [_opened(pool.sources[n], pool.readers[n], targets[n]) for n in np.unique(file_of).tolist()]
    if len(parts) == 1:
        return parts[0]
    try:
        whole = datasets.concatenate_datasets(parts)
    except ValueError as error:
        names = ", ".join(target.name for target in targets[:5])
        raise DataError(f"{folder}: files of different columns are no single Dataset ({names}): {error}") from error
    written = np.argsort(file_of, kind="stable")  # the files hold their records one file after the other
    return whole.select(np.argsort(written, kind="stable"))


def _opened(source: Source, reader: RecordReader, target: Path) -> Dataset:
    import datasets

    if isinstance(source, HuggingFaceFolder):
        return datasets.load_from_disk(str(target))
    if isinstance(source, Parquet):
        return datasets.Dataset.from_parquet(str(target))
    written = open_source(target, source.name, source.record_bytes)
    mapped = reader.columns.images if reader.columns is not None else None
    fields = IMAGE_FIELDS if mapped is None else (mapped,) if isinstance(mapped, str) else tuple(mapped)
    table = _table((_with_images(written.record(i), fields, reader.root) for i in range(len(written))), target)
    features = datasets.Features.from_arrow_schema(table.schema)
    for name in fields:
        if name in features and not pa.types.is_null(kind := table.schema.field(name).type):
            features[name] = [datasets.Image()] if pa.types.is_list(kind) else datasets.Image()
    return datasets.Dataset(table).cast(features)


def _with_images(record: dict[str, Any], fields: Sequence[str], root: ImageRoot) -> dict[str, Any]:
    """The record with its images as ``datasets.Image`` takes them, from where the pool has them."""

    def found(value: Any) -> Any:
        try:
            image = root.find(value)
        except BadRecord:  # kept all the same (pool.unsupported); opening it says what is wrong with it
            return {"bytes": None, "path": str(value)}
        return {"bytes": image.data, "path": None if image.path is None else str(image.path)}

    images = {}
    for name in fields:
        if value := record.get(name):
            images[name] = [found(one) for one in value] if isinstance(value, list) else found(value)
    return record | images


def _table(records: Iterator[Mapping[str, Any]], file: Path) -> pa.Table:
    tables: list[pa.Table] = []
    while chunk := list(islice(records, CHUNK_RECORDS)):
        columns = {}
        for name in dict.fromkeys(name for record in chunk for name in record):
            try:
                columns[name] = pa.array([record.get(name) for record in chunk])
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise _several_types(file, f"field {name!r}", error) from error
        tables.append(pa.table(columns))
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise _several_types(file, "a field", error) from error


def _several_types(file: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{file}: {what} is of several types, and a column of a Dataset of one ({' '.join(str(error).split())[:200]}); "
        "read the records from the file",
        file,
    )
