"""The score table: one row per record of the pool, scored or rejected."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ostlight.errors import BadRecord, DataError, SelectorError
from ostlight.selection.score_files import ScoreFiles, ask
from ostlight.selection.tag_codes import TagCodes, encode_tags, of_rows

OK = "ok"
REJECTED = "rejected"

FIXED_FIELDS = [
    pa.field("position", pa.int64(), nullable=False),
    pa.field("id", pa.string()),
    pa.field("state", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("field", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("tokens", pa.int32()),
    pa.field("answer_cut", pa.bool_()),
    pa.field("tags", pa.map_(pa.string(), pa.string())),
    pa.field("score", pa.float64()),
]
"""Columns of every score table; a selector's extra columns follow. ``score`` is null where ``state`` is not ``ok``."""

FIXED_NAMES = tuple(f.name for f in FIXED_FIELDS)
FIXED_TYPES = {f.name: f.type for f in FIXED_FIELDS}


@dataclass(frozen=True)
class SelectionContext:
    """What a run offers to ``select`` beside the score table.

    Attributes:
        trial: mean loss on the trusted samples after a brief training of the proxy on the records at these positions;
            see ``Scores.trial``. Its other arguments are ``repeat`` and ``steps``. ``None`` where nothing can be tried:
            in a part of a combination whose selection is scored further.
        anchor_groups: the group of each anchor.
        note: stores a named fact of the selection, plain data, in the cost log and for the report.
        seed: the run's seed.
        group_tag: the tag by which anchors are grouped; ``None`` where the configuration names none.
        source_weights: factors by which the pool's pieces get a larger or smaller share of a budget, by their source.
        samples_per_step: of a trial.
        seconds_per_sample: that a step of the warm-up took for each of its samples; ``None`` where it is not known.
    """

    trial: Callable[[np.ndarray, int, int | None], float] | None
    anchor_groups: Callable[[], Sequence[str]]
    note: Callable[[str, Any], None]
    seed: int
    group_tag: str | None = None
    source_weights: Mapping[str, float] = field(default_factory=dict)
    samples_per_step: int = 16
    seconds_per_sample: float | None = None


class Scores:
    """The scored rows of a score table, as a selector's ``select`` sees them. Immutable.

    Rows are numbered from 0 in the table's order; ``select`` returns such numbers. ``positions`` maps them to records
    of the pool. Those of a run are read from its files: ids and numbers at once, texts, vectors and tags when they are
    first asked for.

    Args:
        table: a score table (``FIXED_FIELDS`` and a selector's extra columns); rejected records are left out.
        context: of the run that selects; ``None`` where a table is read by hand.
    """

    def __init__(self, table: pa.Table, context: SelectionContext | None = None) -> None:
        scored = pa.compute.equal(table["state"], OK)
        self._loaded = table if pa.compute.all(scored).as_py() else table.filter(scored)
        self._context = context
        self._files: ScoreFiles | None = None
        self._rows = np.empty(0, dtype=np.int64)
        self._left_out: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: str | Path) -> Scores:
        """From the shards of a run's ``scores`` folder."""
        return cls.of_files(ScoreFiles(Path(folder)))

    @classmethod
    def of_files(cls, files: ScoreFiles) -> Scores:
        """From files that are opened already."""
        scores = cls(files.rows)
        scores._files = files
        scores._rows = np.flatnonzero(pa.compute.equal(files.rows["state"], OK).to_numpy())
        return scores

    def _with(self, loaded: pa.Table, rows: np.ndarray | None = None) -> Scores:
        """Other columns in memory, or (``rows``) other rows of the same files."""
        scores = copy.copy(self)
        scores._loaded = loaded
        scores._rows = self._rows if rows is None else rows
        return scores

    def __len__(self) -> int:
        return int(self._loaded.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns."""
        added = self._loaded.schema
        if self._files is None:
            return added
        left_out = {*added.names, *self._left_out}
        of_files = [field for field in self._files.schema if field.name not in left_out]
        return pa.schema([*added, *of_files])

    @property
    def names(self) -> list[str]:
        """Names of all columns."""
        return [*self.schema.names]

    @property
    def table(self) -> pa.Table:
        """All columns, which for the table of a run means to read the rest of it."""
        if self._files is None:
            return self._loaded
        stored = [name for name in self._files.schema.names if name in self]
        names = list(dict.fromkeys([*stored, *self._loaded.column_names]))
        return pa.table({name: self.stored(name) for name in names})

    def stored(self, name: str) -> pa.ChunkedArray:
        """A column as it is stored.

        Raises:
            DataError: no such column; the message lists those there are.
        """
        if name in self._loaded.column_names:
            return self._loaded[name]
        if name not in self:
            raise DataError(f"the score table has no column {name!r}; it has {', '.join(self.names)}")
        assert self._files is not None, "a table in memory has all its columns loaded"
        column = self._files.column(name)
        is_whole = np.array_equal(self._rows, np.arange(len(column)))
        return column if is_whole else column.take(pa.array(self._rows))

    def column(self, name: str) -> np.ndarray:
        """A column as an array, ``[len(self)]``; lists of equal length become ``[len(self), width]``.

        Raises:
            DataError: no such column; the message lists those there are.
        """
        chunked = self.stored(name).combine_chunks()
        if pa.types.is_fixed_size_list(chunked.type):
            return np.asarray(chunked.flatten().to_numpy(zero_copy_only=False)).reshape(len(self), -1)
        if pa.types.is_list(chunked.type):
            return _rectangle(chunked)
        return np.asarray(chunked.to_numpy(zero_copy_only=False))

    @property
    def score(self) -> np.ndarray:
        """``[len(self)]`` float64; higher is better."""
        return self.column("score")

    @property
    def positions(self) -> np.ndarray:
        """``[len(self)]`` index of each row's record in the pool."""
        return self.column("position")

    @property
    def ids(self) -> list[str]:
        return [*self.stored("id").to_pylist()]

    @property
    def tokens(self) -> np.ndarray:
        """``[len(self)]`` tokens of each sample, as the budget counts them."""
        if self.stored("tokens").null_count:
            raise DataError("token counts are missing: a token budget needs a target model to count with (target.path)")
        return self.column("tokens")

    def tag(self, name: str) -> np.ndarray:
        """``[len(self)]`` value of a tag, the empty string where a sample lacks it.

        Raises:
            DataError: no sample has the tag; the message lists the tags there are.
        """
        found = self._encoded(name).get(name)
        if found is None:
            if len(self):
                there_are = ", ".join(self.encoded_tags()) or "none"
                raise DataError(f"no sample has a tag {name!r}; the pool's tags are: {there_are}")
            return np.empty(0, dtype=object)
        values, codes = found
        return values[codes]

    def tags(self) -> dict[str, np.ndarray]:
        """``[len(self)]`` values of every tag that a sample has, as ``tag`` gives them."""
        return {name: values[codes] for name, (values, codes) in self.encoded_tags().items()}

    def encoded_tags(self) -> dict[str, TagCodes]:
        """For every tag that a sample has: ``[K]`` its values, and ``[len(self)]`` the number of each sample's value.

        The first value is the empty string, of the samples that lack the tag. Ten million samples take 40 MB a tag.
        """
        return self._encoded(None)

    def _encoded(self, only: str | None) -> dict[str, TagCodes]:
        if self._files is None:
            return encode_tags([self._loaded["tags"]], only)
        found = {name: of_rows(codes, self._rows) for name, codes in self._files.tags(only).items()}
        return {name: codes for name, codes in found.items() if codes is not None}

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """The result of a question in SQL (DuckDB's) on the table ``scores``: these rows, or in the table of a run
        those of all records, scored (``state = 'ok'``) or rejected."""
        if self._files is not None and len(self._rows) == self._files.scored:
            return self._files.query(sql, **tables)
        return ask(sql, scores=self.table, **tables)

    def take(self, rows: Sequence[int] | np.ndarray) -> Scores:
        """The given rows, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._with(self._loaded.take(pa.array(rows)), self._rows[rows] if self._files else None)

    def with_tokens(self, tokens: np.ndarray) -> Scores:
        """The same rows, their tokens counted by another tokenizer."""
        return self.with_columns({"tokens": tokens})

    def with_score(self, score: np.ndarray) -> Scores:
        """The same rows, ranked by another number."""
        return self.with_columns({"score": score})

    def with_columns(self, columns: Mapping[str, np.ndarray | pa.ChunkedArray]) -> Scores:
        """The same rows with columns added, or replaced where they exist."""
        table = self._loaded
        for name, values in columns.items():
            if not isinstance(values, pa.ChunkedArray):
                values = pa.array(values, FIXED_TYPES.get(name))
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
        return self._with(table)

    def with_fixed_columns(self) -> Scores:
        """The same rows without the selector's extra columns."""
        names = [name for name in self._loaded.column_names if name in FIXED_NAMES]
        scores = self._with(self._loaded.select(names))
        scores._left_out = frozenset(self.names) - set(FIXED_NAMES)
        return scores

    def with_context(self, context: SelectionContext) -> Scores:
        """The same rows, selected from in a run."""
        scores = copy.copy(self)
        scores._context = context
        return scores

    def trial(self, rows: Sequence[int] | np.ndarray, repeat: int = 0, steps: int | None = None) -> float:
        """Mean loss, in nats, after a brief training of the proxy on these rows; infinite where it diverged.

        In a run it also has ``by_group``: the mean loss of each group of the trusted samples, by the tag
        ``anchors.group`` or else ``evaluation.by``.

        The loss is read on the development set, or on the anchors where there is none. Training starts from the proxy
        before its warm-up. ``select`` can compare subsets by it without test data; the cost goes to the cost log.

        Args:
            rows: the subset, at least one row.
            repeat: another number takes the samples in another order: how far two differ is the noise of a trial.
            steps: optimiser steps, whatever the size of the subset; by default
                ``ostlight.training.trial.TRIAL_STEPS``.

        Raises:
            SelectorError: the run has no proxy or no trusted samples, there is no run, or the selector is a part of a
                combination that only scores with what it selects.
            DataError: no rows.
        """
        if self.context.trial is None:
            raise SelectorError("nothing can be tried in this part of a combination; make the selector its last part")
        return self.context.trial(self.positions[np.asarray(rows, dtype=np.int64)], repeat, steps)

    @property
    def in_run(self) -> bool:
        """Whether there is a ``context``."""
        return self._context is not None

    @property
    def context(self) -> SelectionContext:
        """What the run offers.

        Raises:
            SelectorError: the table was read by hand, so there is no run.
        """
        if self._context is None:
            raise SelectorError(
                "these scores belong to no run, so there is no proxy to train and no trusted sample to read; "
                "select through `ostlight select` or `ostlight benchmark`"
            )
        return self._context


def _rectangle(lists: pa.ListArray) -> np.ndarray:
    """Lists of equal length as ``[rows, width]``, without a Python object for every number."""
    lengths = set(pa.compute.list_value_length(lists).to_pylist())
    if len(lengths) != 1 or lengths & {None, 0}:
        return np.array(lists.to_pylist())
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(len(lists), -1)


def read_score_table(folder: Path) -> pa.Table:
    """All rows of a run's ``scores`` folder, by position, without hidden columns; for tables that fit into memory.

    Raises:
        DataError: no shard is there, or a column is of one type in one and of another elsewhere.
    """
    return ScoreFiles(folder).table()


def rejections(table: pa.Table) -> dict[int, BadRecord]:
    """Why a record of a score table was rejected, by position."""
    rejected = table.filter(pa.compute.equal(table["state"], REJECTED))
    rows = rejected.select(["position", "reason", "detail", "field"]).to_pylist()
    return {row["position"]: BadRecord(row["reason"], row["detail"], row["field"]) for row in rows}
