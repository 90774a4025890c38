"""The score files of a run: asked in SQL, or read column by column, and never held as a whole."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.data.atomic import atomic_path
from ostlight.data.checked_parquet import add_checksum, check_parquet, is_whole
from ostlight.errors import DataError, reading_back
from ostlight.selection.tag_codes import TagCodes, encode_tags

SQL_MEMORY = "2GB"
"""Memory of a query; what it needs beyond that lies in a temporary folder while it runs."""

HIDDEN = "_"
"""First letter of the long columns that a selector stores for ``rescore`` alone: they are skipped."""

MAX_LIST_VALUES = 2**31 - 1
"""Numbers in a column of lists up to which pyarrow can sort it."""

CURE = "remove it, and `ostlight select` scores its records again"
"""For a score file that is damaged, in commands that do not score it again themselves."""

TEXTS_READ = ("id", "state")
"""Columns of text among ``ScoreFiles.rows``."""


class ScoreFiles:
    """The score table of a run as it lies on disk, a file for each shard.

    Rows are numbered from 0 by ascending position, whatever order the files have.

    Args:
        folder: of the files.
        skip_damaged: leave out damaged files.

    Raises:
        DataError: the folder holds no score file, or a damaged one.
    """

    def __init__(self, folder: Path, skip_damaged: bool = False) -> None:
        self.folder = folder
        self.parts = [part for part in sorted(folder.glob("part-*.parquet")) if not skip_damaged or is_whole(part)]
        if not self.parts:
            raise DataError(f"{folder} holds no scores; run `ostlight select` first")
        for part in self.parts:
            with reading_back(part, CURE):
                check_parquet(part)
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._order: np.ndarray | None = None
        self._tags: dict[str, TagCodes] = {}
        self._has_all_tags = False

    @cached_property
    def schema(self) -> pa.Schema:
        """Of all files together, without hidden columns.

        Raises:
            DataError: a column is of one type in one file and of another elsewhere.
        """
        schemas = []
        for part in self.parts:
            with reading_back(part, CURE):
                schemas.append(_shown(pq.read_schema(part)))
        try:
            return pa.unify_schemas(list(dict.fromkeys(schemas)), promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(schema_conflict(self.parts, schemas)) from error

    @cached_property
    def rows(self) -> pa.Table:
        """Every record: its id, its state, and all columns of single numbers."""
        names = [f.name for f in self.schema if f.name in TEXTS_READ or pa.types.is_primitive(f.type)]
        table = self._read(names)
        position = table["position"].to_numpy()
        if (np.diff(position) <= 0).any():
            self._order = np.argsort(position, kind="stable")
        return self._by_position(table)

    def table(self) -> pa.Table:
        """All columns of every record, for tables that fit into memory."""
        assert self.rows is not None, "the order of the rows is known by now"
        return self._by_position(without_offsets(self._read(self.schema.names)))

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of every record; it stays in memory."""
        if name in self.rows.column_names:
            return self.rows[name]
        if name not in self._columns:
            self._columns[name] = self._by_position(without_offsets(self._read([name])))[name]
        return self._columns[name]

    @property
    def scored(self) -> int:
        """Records that are not rejected."""
        return len(self.rows) - int(pc.sum(pc.equal(self.rows["state"], "rejected")).as_py() or 0)

    def tags(self, only: str | None = None) -> dict[str, TagCodes]:
        """The tags of every record, by position, as ``encode_tags`` gives them; they stay in memory."""
        if only is None and not self._has_all_tags:
            self._tags, self._has_all_tags = encode_tags(self._tag_columns()), True
        elif only is not None and only not in self._tags and not self._has_all_tags:
            self._tags |= encode_tags(self._tag_columns(), only)
        wanted = self._tags if only is None else {only: self._tags[only]} if only in self._tags else {}
        if self._order is None:
            return wanted
        return {name: (values, codes[self._order]) for name, (values, codes) in wanted.items()}

    def _tag_columns(self) -> Iterator[pa.ChunkedArray]:
        for part in self.parts:
            with reading_back(part, CURE), pq.ParquetFile(part) as file:
                tags = file.read(["tags"])["tags"]
            yield tags

    def rejected(self) -> pa.Table:
        """``position``, ``id``, ``state``, ``reason``, ``field`` and ``detail`` of rejected records, by position."""
        columns = "position, id, state, reason, field, detail"
        return self.query(f"SELECT {columns} FROM scores WHERE state = 'rejected' ORDER BY position")

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """The result of a question in SQL (DuckDB's).

        Args:
            sql: on the table ``scores``, which has the columns that every score table has, for every record.
            tables: further tables, by their name in the query.
        """
        with reading_back(self.folder, "one of its files cannot be read"), self._connected(tables) as connection:
            return connection.sql(sql).to_arrow_table()

    def write(self, sql: str, target: Path, metadata: Mapping[str, str], **tables: pa.Table) -> None:
        """Writes what ``query`` would return as a Parquet file: whole, or not at all.

        Args:
            metadata: of the file.
        """
        pairs = ", ".join(f"{_quoted(key)}: {_quoted(value)}" for key, value in metadata.items())
        with atomic_path(target) as temporary, self._connected(tables) as connection:
            options = f"FORMAT parquet, COMPRESSION snappy, KV_METADATA {{{pairs}}}"
            connection.execute(f"COPY ({sql}) TO {_quoted(str(temporary))} ({options})")
            add_checksum(temporary)

    @contextmanager
    def _connected(self, tables: dict[str, pa.Table]) -> Iterator[duckdb.DuckDBPyConnection]:
        files = [glob.escape(str(part)) for part in self.parts]
        with connected() as connection:
            connection.read_parquet(files).create_view("scores")
            for name, table in tables.items():
                connection.register(name, table)
            yield connection

    def _by_position(self, table: pa.Table) -> pa.Table:
        return table if self._order is None else table.take(pa.array(self._order))

    def _read(self, names: Sequence[str]) -> pa.Table:
        """These columns, in the order of the files."""
        tables = []
        for part in self.parts:
            with reading_back(part, CURE), pq.ParquetFile(part) as file:
                tables.append(file.read([name for name in names if name in file.schema_arrow.names]))
        return pa.concat_tables(tables, promote_options="permissive").select(list(names))


def ask(sql: str, **tables: pa.Table) -> pa.Table:
    """The result of a question in SQL (DuckDB's) on tables in memory."""
    with connected() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(sql).to_arrow_table()


@contextmanager
def connected() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, which spills to a temporary folder what it has no room for."""
    with (
        tempfile.TemporaryDirectory(prefix="ostlight-") as folder,
        duckdb.connect(config={"memory_limit": SQL_MEMORY, "temp_directory": folder}) as connection,
    ):
        # In a notebook without ipywidgets DuckDB has no bar, and refuses the setting.
        with suppress(duckdb.InvalidInputException):
            connection.execute("SET enable_progress_bar = false")
        yield connection


def _quoted(text: str) -> str:
    """The text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def without_offsets(table: pa.Table) -> pa.Table:
    """Vectors of one length with more numbers than 32-bit offsets count (500,000 of 4,096) as fixed-size lists."""
    for k, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_list(column.type) and sum(len(chunk.values) for chunk in column.chunks) > MAX_LIST_VALUES:
            lengths = pc.unique(pc.list_value_length(column)).drop_null()
            if len(lengths) == 1:
                column = column.cast(pa.list_(column.type.value_type, lengths[0].as_py()))
                table = table.set_column(k, name, column)
    return table


def schema_conflict(parts: Sequence[Path], schemas: Sequence[pa.Schema]) -> str:
    """The first column whose type differs between shards, and where, as a message."""
    first_seen: dict[str, tuple[pa.DataType, Path]] = {}
    for path, schema in zip(parts, schemas, strict=True):
        for column in schema:
            dtype, first = first_seen.setdefault(column.name, (column.type, path))
            try:
                pa.unify_schemas([pa.schema([(column.name, dtype)]), pa.schema([column])], promote_options="permissive")
            except pa.ArrowException:
                found = f"{dtype} in {first.name} and {column.type} in {path.name}"
                return (
                    f"{path.parent}: column {column.name!r} is {found}; "
                    "return the same type for every batch from the selector's score"
                )
            if pa.types.is_null(dtype):
                first_seen[column.name] = column.type, path
    return f"{parts[0].parent}: the shards do not fit together"


def _shown(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if not field.name.startswith(HIDDEN)])
