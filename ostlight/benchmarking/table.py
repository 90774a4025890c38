"""The tables of a comparison: accuracy with differences, and cost. As Markdown and CSV.

Times stand in the table of costs alone: the other is the same, byte for byte, whenever the benchmark is run again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ostlight.benchmarking.paired_difference import Difference
from ostlight.benchmarking.pareto import pareto_front
from ostlight.benchmarking.results import Interval, ResultRow
from ostlight.evaluation.answers import ALL


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first ``names`` columns name the row."""

    head: list[str]
    rows: list[list[str]]
    names: int

    def markdown(self) -> str:
        rule = ["---" if k < self.names else "---:" for k in range(len(self.head))]
        planned_runs = [[_escaped(text) for text in row] for row in [self.head, rule, *self.rows]]
        return "".join("| " + " | ".join(row) + " |\n" for row in planned_runs)

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(self.head)
        writer.writerows(self.rows)
        return out.getvalue()


def _escaped(text: str) -> str:
    """In one cell of a Markdown table."""
    return " ".join(text.replace("|", r"\|").split())


def groups_of(lines: Sequence[ResultRow]) -> list[str]:
    """Of the questions, without the mean over all; variants with test sets of their own may differ in them."""
    return list(dict.fromkeys(g for line in lines for g in line.accuracy if g != ALL))


def accuracy_table(lines: Sequence[ResultRow], baseline: str | None) -> TextTable:
    """Accuracies in percent with their interval over seeds, differences in points with theirs over seeds and items.

    Blank where a line's questions have none of a group.
    """
    groups = groups_of(lines)
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
                *(f"{100 * line.accuracy[g].mean:.0f}" if g in line.accuracy else "" for g in groups),
                f"{line.kept:.0f}" if line.kept else "",
                share,
                _flops(line.selection_flops),
                _flops(line.total_flops),
            ]
        )
    return TextTable(head, rows, len(names))


def cost_table(lines: Sequence[ResultRow]) -> TextTable:
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


def _names(lines: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
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
