"""The table of a comparison, for the terminal and as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from ostlight.comparison.results import Interval, Line
from ostlight.evaluation.evaluate import ALL


def headings(lines: Sequence[Line]) -> list[str]:
    groups = [g for g in lines[0].accuracy if g != ALL]
    return ["selector", "budget", "protocol", "accuracy (95%)", *groups, "defects kept", "selection", "training"]


def cells(line: Line) -> list[str]:
    """One row as text; costs in device-seconds and FLOPs."""
    groups = [v for g, v in line.accuracy.items() if g != ALL]
    share = "" if line.defect_share is None else f"{100 * line.defect_share:.0f}%"
    return [
        line.label,
        line.budget,
        line.protocol,
        _interval(line.accuracy[ALL]),
        *(f"{100 * v.mean:.0f}" for v in groups),
        share,
        _cost(line.selection_s, line.selection_flops),
        _cost(line.training_s, line.training_flops),
    ]


def _interval(value: Interval) -> str:
    if value.half != value.half:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.half:.1f}"


def _cost(seconds: float, flops: float) -> str:
    return f"{seconds:.1f} s, {flops:.1e}" if seconds or flops else ""


def rich_table(lines: Sequence[Line], title: str) -> Table:
    table = Table(title=title)
    for k, heading in enumerate(headings(lines)):
        table.add_column(heading, justify="left" if k < 3 else "right", no_wrap=k < 4)
    for line in lines:
        table.add_row(*cells(line))
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
