"""The table of a comparison, for the terminal and as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from ostlight.comparison.names import short_names
from ostlight.comparison.results import Interval, Line
from ostlight.evaluation.evaluate import ALL

LEFT = 3
"""Columns of names, before the numbers."""


def headings(lines: Sequence[Line]) -> list[str]:
    """Names first, then accuracies in percent, then what was kept and what it cost."""
    groups = [g for g in lines[0].accuracy if g != ALL]
    costs = ["selection (s, FLOPs)", "training (s, FLOPs)"]
    return ["selector", "budget", "protocol", "accuracy (95%)", *groups, "defects kept", *costs]


def cells(line: Line) -> list[str]:
    """One row as text; costs in device-seconds and FLOPs."""
    groups = [v for g, v in line.accuracy.items() if g != ALL]
    share = "" if line.defect_share is None else f"{100 * line.defect_share:.0f}%"
    return [
        line.label,
        line.budget,
        line.protocol.replace("_", " "),
        _interval(line.accuracy[ALL]),
        *(f"{100 * v.mean:.0f}" for v in groups),
        share,
        _cost(line.selection_s, line.selection_flops) + _paid(line),
        _cost(line.training_s, line.training_flops),
    ]


def _interval(value: Interval) -> str:
    if value.half != value.half:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.half:.1f}"


def _cost(seconds: float, flops: float) -> str:
    return f"{seconds:.0f}, {flops:.1e}" if seconds or flops else ""


def _paid(line: Line) -> str:
    calls = f"; {line.selection_calls:,.0f} calls" if line.selection_calls else ""
    return calls + (f"; price {line.selection_price:.2f}" if line.selection_price else "")


def rich_tables(lines: Sequence[Line], title: str, width: int) -> list[Table]:
    """The table for a terminal of that many columns; where it is too narrow, the groups stand in a second one.

    What all lines have in common goes into the title.
    """
    names, common = short_names(lines)
    title = ", ".join([title, *common])
    head = ["selected", *headings(lines)[LEFT:]]
    rows = [[name, *cells(line)[LEFT:]] for name, line in zip(names, lines, strict=True)]
    groups = range(2, 1 + len(lines[0].accuracy))
    whole = list(range(len(head)))
    needed = sum(max(len(row[k]) for row in [head, *rows]) + 3 for k in whole) + 1
    if needed <= width:
        return [_table(title, head, rows, whole)]
    narrow = [k for k in whole if k not in groups]
    return [_table(title, head, rows, narrow), _table("accuracy by group, %", head, rows, [0, *groups])]


def _table(title: str, head: list[str], rows: list[list[str]], columns: list[int]) -> Table:
    table = Table(title=title, title_justify="left")
    for k in columns:
        table.add_column(head[k], justify="right" if k else "left")
    for row in rows:
        table.add_row(*(row[k] for k in columns))
    return table


def markdown(lines: Sequence[Line]) -> str:
    head = headings(lines)
    rows = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *map(cells, lines)]]
    return "\n".join(rows) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(headings(lines))
    writer.writerows(map(cells, lines))
    return out.getvalue()
