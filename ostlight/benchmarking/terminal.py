"""The tables of a comparison for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.table import Table
from rich.text import Text

from ostlight.benchmarking.names import in_common, short_names
from ostlight.benchmarking.results import ResultRow
from ostlight.benchmarking.table import TextTable, accuracy_table, cost_table, groups_of
from ostlight.data.sanitize import harmless

FLOPS = ("selection FLOPs", "training FLOPs", "total FLOPs")
"""What a narrow terminal shows in a table apart from times and prices."""


def rich_tables(lines: Sequence[ResultRow], baseline: str | None, title: str, width: int) -> list[Table]:
    """Both tables for a terminal of that many columns; one it is too narrow for is split in two.

    What all lines have in common goes into the title.
    """
    with_variant = any(line.variant for line in lines)
    names = [
        f"{line.variant}: {name}" if with_variant else name
        for line, name in zip(lines, short_names(lines), strict=True)
    ]
    title = ", ".join([title, *in_common(lines).words])
    accuracy, cost, groups = accuracy_table(lines, baseline), cost_table(lines), groups_of(lines)
    tables = [(title, *_named(names, accuracy))]
    if not _fits(*tables[0][1:], width):
        tables = [
            (title, *_named(names, accuracy, leave_out=(*groups, "kept", "selection FLOPs"))),
            ("accuracy by group, %", *_named(names, accuracy, leave_out={*accuracy.head} - {*groups})),
        ]
    costs = [("what it cost", *_named(names, cost, leave_out=("accuracy",)))]
    if not _fits(*costs[0][1:], width):
        costs = [
            ("what it cost", *_named(names, cost, leave_out={*cost.head} - {*FLOPS, "on the front"})),
            ("how long it took", *_named(names, cost, leave_out=(*FLOPS, "accuracy", "on the front"))),
        ]
    return [_table(*t) for t in [*tables, *costs]]


def _named(
    names: Sequence[str], table: TextTable, leave_out: Collection[str] = ()
) -> tuple[list[str], list[list[str]]]:
    kept = [k for k in range(table.names, len(table.head)) if table.head[k] not in leave_out]
    head = ["selected", *(table.head[k] for k in kept)]
    return head, [[name, *(row[k] for k in kept)] for name, row in zip(names, table.rows, strict=True)]


def _fits(head: list[str], rows: list[list[str]], width: int) -> bool:
    return sum(max(len(row[k]) for row in [head, *rows]) + 3 for k in range(len(head))) + 1 <= width


def _table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    """Group names, labels and titles come from the data and are no markup."""
    table = Table(title=Text(harmless(title)), title_justify="left")
    for k, name in enumerate(head):
        table.add_column(Text(harmless(name)), justify="right" if k else "left")
    for row in rows:
        table.add_row(*(Text(harmless(text)) for text in row))
    return table
