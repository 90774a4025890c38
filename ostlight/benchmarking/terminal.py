"""The tables of a comparison for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.table import Table
from rich.text import Text

from ostlight.benchmarking.names import shared_settings, short_names
from ostlight.benchmarking.results import ResultRow
from ostlight.benchmarking.table import (
    KEPT,
    PARETO,
    SELECTION_FLOPS,
    TOTAL_FLOPS,
    TRAINING_FLOPS,
    TextTable,
    accuracy_table,
    cost_table,
    groups_of,
)
from ostlight.data.sanitize import harmless

FLOPS = (SELECTION_FLOPS, TRAINING_FLOPS, TOTAL_FLOPS)


def rich_tables(rows: Sequence[ResultRow], baseline: str | None, title: str, width: int) -> list[Table]:
    """Returns accuracy and cost for a terminal of ``width`` columns; a table that is too wide becomes two.

    The title says what all rows have in common.
    """
    names = [
        f"{row.variant}: {name}" if row.variant else name for row, name in zip(rows, short_names(rows), strict=True)
    ]
    title = ", ".join([title, *shared_settings(rows).phrases])
    accuracy, cost, groups = accuracy_table(rows, baseline), cost_table(rows), groups_of(rows)
    tables = [(title, _without(accuracy, names))]
    if not _fits(tables[0][1], width):
        tables = [
            (title, _without(accuracy, names, (*groups, KEPT, SELECTION_FLOPS))),
            ("accuracy by group, %", _without(accuracy, names, {*accuracy.headings} - {*groups})),
        ]
    costs = [("cost", _without(cost, names, ("accuracy, %",)))]
    if not _fits(costs[0][1], width):
        costs = [
            ("cost", _without(cost, names, {*cost.headings} - {*FLOPS, PARETO})),
            ("time", _without(cost, names, (*FLOPS, "accuracy, %", PARETO))),
        ]
    return [_rich_table(title, table) for title, table in [*tables, *costs]]


def _without(table: TextTable, names: Sequence[str], left_out: Collection[str] = ()) -> TextTable:
    """Returns a table with one column of names, and without some columns."""
    columns = [k for k in range(table.name_columns, len(table.headings)) if table.headings[k] not in left_out]
    rows = [[name, *(row[k] for k in columns)] for name, row in zip(names, table.rows, strict=True)]
    return TextTable(["selected", *(table.headings[k] for k in columns)], rows, 1)


def _fits(table: TextTable, width: int) -> bool:
    columns = zip(table.headings, *table.rows, strict=True)
    return sum(max(map(len, column)) + 3 for column in columns) + 1 <= width


def _rich_table(title: str, content: TextTable) -> Table:
    """Groups, labels and titles come from the data: they are shown as they are, not read as markup."""
    table = Table(title=Text(harmless(title)), title_justify="left")
    for k, heading in enumerate(content.headings):
        table.add_column(Text(harmless(heading)), justify="right" if k else "left")
    for row in content.rows:
        table.add_row(*(Text(harmless(text)) for text in row))
    return table
