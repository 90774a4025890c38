"""The tables of a comparison: accuracy with differences, and cost. For the terminal and as Markdown and CSV.

Times stand in the table of costs alone: the other is the same, byte for byte, whenever the benchmark is run again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from ostlight.comparison.costs import pareto_front
from ostlight.comparison.differences import Difference
from ostlight.comparison.names import in_common, short_names
from ostlight.comparison.results import Interval, Line
from ostlight.evaluation.answers import ALL


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first ``names`` columns name the row."""

    head: list[str]
    rows: list[list[str]]
    names: int

    def markdown(self) -> str:
        rule = ["---" if k < self.names else "---:" for k in range(len(self.head))]
        return "".join("| " + " | ".join(row) + " |\n" for row in [self.head, rule, *self.rows])

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(self.head)
        writer.writerows(self.rows)
        return out.getvalue()


def accuracy_table(lines: Sequence[Line], baseline: str | None) -> TextTable:
    """Accuracies in percent with their interval over seeds, differences in points with theirs over seeds and items."""
    groups = [g for g in lines[0].accuracy if g != ALL]
    to = [f"difference to {baseline} (95%)"] if baseline else []
    names, named = _names(lines)
    head = [*names, "seeds", "accuracy (95%)", *to, *groups, "kept", "defects kept", "selection FLOPs", "total FLOPs"]
    rows = []
    for line, name in zip(lines, named, strict=True):
        share = "" if line.defect_share is None else f"{100 * line.defect_share:.0f}%"
        rows.append(
            [
                *name,
                str(line.seeds),
                _interval(line.accuracy[ALL]),
                *([_difference(line.difference)] if baseline else []),
                *(f"{100 * v.mean:.0f}" for g, v in line.accuracy.items() if g != ALL),
                f"{line.kept:.0f}" if line.kept else "",
                share,
                _flops(line.selection_flops),
                _flops(line.total_flops),
            ]
        )
    return TextTable(head, rows, len(names))


def cost_table(lines: Sequence[Line]) -> TextTable:
    """What each line cost: selection (warm-up, scoring, picking), training, both; and whether the front holds it."""
    names, named = _names(lines)
    priced = any(line.selection_calls or line.selection_price for line in lines)
    head = [*names, "accuracy", "selection FLOPs", "training FLOPs", "total FLOPs"]
    head += ["selection device-s", "training device-s", "total device-s", "total wall s"]
    head += [*(["calls", "price"] if priced else []), "on the front"]
    rows = []
    for line, name, front in zip(lines, named, pareto_front(lines), strict=True):
        seconds = (line.selection_s, line.training_s, line.total_s, line.total_wall_s)
        paid = [f"{line.selection_calls:.0f}", f"{line.selection_price:.2f}"] if priced else []
        flops = (line.selection_flops, line.training_flops, line.total_flops)
        accuracy = f"{100 * line.accuracy[ALL].mean:.1f}"
        row = [*name, accuracy, *map(_flops, flops), *(f"{s:.1f}" for s in seconds), *paid, "yes" if front else ""]
        rows.append(row)
    return TextTable(head, rows, len(names))


def _names(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Headings and values of the columns that name a line; no column for variants where there are none."""
    with_variant = any(line.variant for line in lines)
    head = [*(["variant"] if with_variant else []), "selector", "budget", "protocol"]
    return head, [
        [*([line.variant] if with_variant else []), line.label, line.budget, line.protocol.replace("_", " ")]
        for line in lines
    ]


def _interval(value: Interval) -> str:
    if value.half != value.half:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.half:.1f}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _flops(value: float) -> str:
    return f"{value:.2e}" if value else ""


def rich_tables(lines: Sequence[Line], baseline: str | None, title: str, width: int) -> list[Table]:
    """Both tables for a terminal of that many columns; where it is too narrow, the groups stand in one of their own.

    What all lines have in common goes into the title.
    """
    with_variant = any(line.variant for line in lines)
    names = [
        f"{line.variant}: {name}" if with_variant else name
        for line, name in zip(lines, short_names(lines), strict=True)
    ]
    title = ", ".join([title, *in_common(lines).words])
    accuracy, cost = accuracy_table(lines, baseline), cost_table(lines)
    groups = [g for g in lines[0].accuracy if g != ALL]
    head, rows = _named(names, accuracy, leave_out=())
    tables = [(title, head, rows)]
    if not _fits(head, rows, width):
        narrow = _named(names, accuracy, leave_out=(*groups, "kept", "selection FLOPs"))
        others = [h for h in accuracy.head if h not in groups]
        tables = [(title, *narrow), ("accuracy by group, %", *_named(names, accuracy, leave_out=others))]
    tables.append(("what it cost", *_named(names, cost, leave_out=("accuracy", "total wall s"))))
    return [_table(*t) for t in tables]


def _named(names: Sequence[str], table: TextTable, leave_out: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    kept = [k for k in range(table.names, len(table.head)) if table.head[k] not in leave_out]
    head = ["selected", *(table.head[k] for k in kept)]
    return head, [[name, *(row[k] for k in kept)] for name, row in zip(names, table.rows, strict=True)]


def _fits(head: list[str], rows: list[list[str]], width: int) -> bool:
    return sum(max(len(row[k]) for row in [head, *rows]) + 3 for k in range(len(head))) + 1 <= width


def _table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(head):
        table.add_column(name, justify="right" if k else "left")
    for row in rows:
        table.add_row(*row)
    return table
