"""The score table: one row per record of the pool, scored or rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.errors import BadRecord, DataError, SelectorError

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

MAX_LIST_VALUES = 2**31 - 1
"""Numbers in a column of lists up to which pyarrow can sort it."""

FIXED_NAMES = tuple(f.name for f in FIXED_FIELDS)

HIDDEN = "_"
"""First letter of the long columns that a selector stores for ``rescore`` alone: ``read_score_table`` skips them."""


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
    of the pool.

    Args:
        table: a score table (``FIXED_FIELDS`` and a selector's extra columns); rejected records are left out.
        context: of the run that selects; ``None`` where a table is read by hand.
    """

    def __init__(self, table: pa.Table, context: SelectionContext | None = None) -> None:
        scored = pa.compute.equal(table["state"], OK)
        self.table = table if pa.compute.all(scored).as_py() else table.filter(scored)
        self._context = context

    @classmethod
    def read(cls, folder: Path) -> Scores:
        """From the shards of a run's ``scores`` folder."""
        return cls(read_score_table(folder))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def column(self, name: str) -> np.ndarray:
        """A column as an array, ``[len(self)]``; lists of equal length become ``[len(self), width]``.

        Raises:
            DataError: no such column; the message lists those there are.
        """
        if name not in self:
            raise DataError(f"the score table has no column {name!r}; it has {', '.join(self.table.column_names)}")
        chunked = self.table[name].combine_chunks()
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
        return [*self.table["id"].to_pylist()]

    @property
    def tokens(self) -> np.ndarray:
        """``[len(self)]`` tokens of each sample, as the budget counts them."""
        if self.table["tokens"].null_count:
            raise DataError("token counts are missing: a token budget needs a target model to count with (target.path)")
        return self.column("tokens")

    def tag(self, name: str) -> np.ndarray:
        """``[len(self)]`` value of a tag, the empty string where a sample lacks it.

        Raises:
            DataError: no sample has the tag; the message lists the tags there are.
        """
        tags = self.tags()
        if len(self) and name not in tags:
            raise DataError(f"no sample has a tag {name!r}; the pool's tags are: {', '.join(tags) or 'none'}")
        return tags.get(name, np.empty(0, dtype=object))

    def tags(self) -> dict[str, np.ndarray]:
        """``[len(self)]`` values of every tag that a sample has, as ``tag`` gives them."""
        return {name: values[codes] for name, (values, codes) in self.encoded_tags().items()}

    def encoded_tags(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For every tag that a sample has: ``[K]`` its values, and ``[len(self)]`` the number of each sample's value.

        The first value is the empty string, of the samples that lack the tag. Ten million samples take 40 MB a tag.
        """
        maps = self.table["tags"].combine_chunks().take(pa.array(np.arange(len(self))))  # compact: no offset of a slice
        owners = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(maps.offsets.to_numpy()))
        keys = maps.keys
        tags = {}
        for name in sorted(keys.unique().to_pylist()):
            chosen = pa.compute.equal(keys, name)
            values = maps.items.filter(chosen).dictionary_encode()
            codes = np.zeros(len(self), dtype=np.int32)
            codes[owners[chosen.to_numpy(zero_copy_only=False)]] = 1 + values.indices.to_numpy(zero_copy_only=False)
            tags[name] = np.array(["", *values.dictionary.to_pylist()], dtype=object), codes
        return tags

    def take(self, rows: Sequence[int] | np.ndarray) -> Scores:
        """The given rows, in that order."""
        return Scores(self.table.take(pa.array(np.asarray(rows, dtype=np.int64))), self._context)

    def with_tokens(self, tokens: np.ndarray) -> Scores:
        """The same rows, their tokens counted by another tokenizer."""
        return self.with_columns({"tokens": tokens})

    def with_score(self, score: np.ndarray) -> Scores:
        """The same rows, ranked by another number."""
        return self.with_columns({"score": score})

    def with_columns(self, columns: Mapping[str, np.ndarray | pa.ChunkedArray]) -> Scores:
        """The same rows with columns added, or replaced where they exist."""
        table = self.table
        for name, values in columns.items():
            if not isinstance(values, pa.ChunkedArray):
                values = pa.array(values, table.schema.field(name).type if name in FIXED_NAMES else None)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
        return Scores(table, self._context)

    def with_context(self, context: SelectionContext) -> Scores:
        """The same rows, selected from in a run."""
        return Scores(self.table, context)

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
    """All rows of a run's ``scores`` folder, by position, without hidden columns (``HIDDEN``).

    Raises:
        DataError: no shard is there, or a column is of one type in one and of another elsewhere.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise DataError(f"{folder} holds no scores; run `ostlight select` first")
    tables = [pq.read_table(p, columns=[n for n in pq.read_schema(p).names if not n.startswith(HIDDEN)]) for p in parts]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(_schema_conflict(parts, tables)) from error
    return _without_offsets(table).sort_by("position")


def _without_offsets(table: pa.Table) -> pa.Table:
    """Vectors of one length with more numbers than 32-bit offsets count (500,000 of 4,096) as fixed-size lists."""
    for k, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_list(column.type) and sum(len(chunk.values) for chunk in column.chunks) > MAX_LIST_VALUES:
            lengths = pa.compute.unique(pa.compute.list_value_length(column)).drop_null()
            if len(lengths) == 1:
                column = column.cast(pa.list_(column.type.value_type, lengths[0].as_py()))
                table = table.set_column(k, name, column)
    return table


def _schema_conflict(parts: Sequence[Path], tables: Sequence[pa.Table]) -> str:
    """The first column whose type differs between shards, and where, as a message."""
    first_seen: dict[str, tuple[pa.DataType, Path]] = {}
    for path, table in zip(parts, tables, strict=True):
        for column in table.schema:
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


def rejections(table: pa.Table) -> dict[int, BadRecord]:
    """Why a record of a score table was rejected, by position."""
    rejected = table.filter(pa.compute.equal(table["state"], REJECTED))
    rows = rejected.select(["position", "reason", "detail", "field"]).to_pylist()
    return {row["position"]: BadRecord(row["reason"], row["detail"], row["field"]) for row in rows}
