"""The tables of a comparison, results and cost, as Markdown, as CSV and for a terminal.

Only the table of costs holds times: the other one is the same, byte for byte, whenever the benchmark is run again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from ostlight.benchmarking.metric import Metric
from ostlight.benchmarking.names import protocol_words, shared_settings, short_names
from ostlight.benchmarking.paired_difference import Difference
from ostlight.benchmarking.results import Interval, ResultRow, pareto_optimal
from ostlight.data.sanitize import printable
from ostlight.evaluation.answers import ALL

KEPT, PARETO = "samples kept", "Pareto-optimal"
SELECTION_FLOPS, TOTAL_FLOPS = "selection FLOPs", "total FLOPs"
FLOPS = (SELECTION_FLOPS, "training FLOPs", TOTAL_FLOPS)
SECONDS = ("selection, device seconds", "training, device seconds", "total, device seconds", "total, elapsed seconds")

VERDICTS = {True: "yes", False: "", None: "not known"}
"""Whether a row is Pareto-optimal, as the table of costs says it."""


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text.

    Attributes:
        name_columns: how many columns name the row, from the left.
    """

    headings: list[str]
    rows: list[list[str]]
    name_columns: int

    def markdown(self) -> str:
        rule = ["---" if k < self.name_columns else "---:" for k in range(len(self.headings))]
        named = [[self._escaped(k, text) for k, text in enumerate(row)] for row in self.rows]
        rows = [[self._escaped(0, text) for text in self.headings], rule, *named]
        return "".join("| " + " | ".join(row) + " |\n" for row in rows)

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow([_guarded(text) for text in self.headings])
        writer.writerows([[*map(_guarded, row[: self.name_columns]), *row[self.name_columns :]] for row in self.rows])
        return out.getvalue()

    def _escaped(self, column: int, text: str) -> str:
        """A cell of one line; names, which come from the configuration and the data, without markup."""
        line = " ".join(text.split())
        return re.sub(r"([\\`*<>\[\]|])", r"\\\1", line) if column < self.name_columns else line.replace("|", r"\|")

    def rich(self, title: str) -> Table:
        """Returns the table for a terminal; texts come from the data, and are shown as they are, not read as markup."""
        table = Table(title=Text(printable(title)), title_justify="left")
        for k, heading in enumerate(self.headings):
            table.add_column(Text(printable(heading)), justify="left" if k < self.name_columns else "right")
        for row in self.rows:
            table.add_row(*(Text(printable(text)) for text in row))
        return table


def _guarded(text: str) -> str:
    """A name as a spreadsheet shows it: what begins like a formula is text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def groups_of(rows: Sequence[ResultRow]) -> list[str]:
    """Returns the groups of the questions; variants with test sets of their own may have different ones."""
    return list(dict.fromkeys(group for row in rows for group in row.values if group != ALL))


def results_table(rows: Sequence[ResultRow], baseline: str | None) -> TextTable:
    """Returns the metric with its interval over seeds, and differences with their interval over seeds and items; blank
    where a row has no questions of a group."""
    groups, metric = groups_of(rows), rows[0].compared_by
    name_headings, names = _name_columns(rows)
    difference = [f"difference to {baseline}, {metric.difference_unit} (95%)"] if baseline else []
    headings = [
        *name_headings,
        "seeds",
        f"{metric.heading} (95%)",
        *difference,
        *groups,
        KEPT,
        "defective",
        SELECTION_FLOPS,
    ]
    texts = [
        [
            *name,
            str(row.seeds),
            _interval(row.values[ALL], metric),
            *([_difference(row.difference, metric, row.seeds)] if baseline else []),
            *(metric.shown(row.values[group].mean, fewer=1) if group in row.values else "" for group in groups),
            f"{row.kept:.0f}" if row.kept else "",
            "" if row.defect_share is None else f"{100 * row.defect_share:.0f}%",
            flops_text(row.selection_flops),
            flops_text(row.total_flops),
        ]
        for row, name in zip(rows, names, strict=True)
    ]
    return TextTable([*headings, TOTAL_FLOPS], texts, len(name_headings))


def cost_table(rows: Sequence[ResultRow]) -> TextTable:
    """Returns what each row cost: selection (warm-up, scoring, selecting), training, and both. Served models are in it
    by requests and price, their FLOPs nowhere."""
    name_headings, names = _name_columns(rows)
    has_price = any(row.selection_calls or row.selection_price for row in rows)
    price_headings = ["requests", "price"] if has_price else []
    metric = rows[0].compared_by
    headings = [*name_headings, metric.heading, *FLOPS, *SECONDS, *price_headings, PARETO]
    texts = []
    for row, name, is_optimal in zip(rows, names, pareto_optimal(rows), strict=True):
        flops = (row.selection_flops, row.training_flops, row.total_flops)
        seconds = (row.selection_s, row.training_s, row.total_s, row.total_wall_s)
        price = [f"{row.selection_calls:.0f}", f"{row.selection_price:.2f}"] if has_price else []
        figures = [metric.shown(row.values[ALL].mean), *map(flops_text, flops), *(f"{s:.1f}" for s in seconds), *price]
        texts.append([*name, *figures, VERDICTS[is_optimal]])
    return TextTable(headings, texts, len(name_headings))


def terminal_tables(rows: Sequence[ResultRow], baseline: str | None, title: str) -> list[Table]:
    """Returns results, results by group, FLOPs and times, each narrow enough for 80 columns where names are short.

    The title says what all rows have in common, and the names do not.
    """
    names = [
        f"{row.variant}: {name}" if row.variant else name for row, name in zip(rows, short_names(rows), strict=True)
    ]
    title = ", ".join([title, *shared_settings(rows).phrases])
    results, cost, groups = results_table(rows, baseline), cost_table(rows), groups_of(rows)
    metric = rows[0].compared_by
    first = {*results.headings} - {*groups, KEPT, SELECTION_FLOPS}
    parts = [
        (title, results, first),
        (f"{metric.name} by group, {metric.unit}", results, groups),
        ("cost", cost, (*FLOPS, PARETO)),
        ("time", cost, (*SECONDS, "requests", "price")),
    ]
    return [_columns_of(table, names, headings).rich(name) for name, table, headings in parts if headings]


def _columns_of(table: TextTable, names: Sequence[str], headings: Collection[str]) -> TextTable:
    """Returns one column of names and the columns of these headings."""
    columns = [k for k in range(table.name_columns, len(table.headings)) if table.headings[k] in headings]
    rows = [[name, *(row[k] for k in columns)] for name, row in zip(names, table.rows, strict=True)]
    return TextTable(["selected", *(table.headings[k] for k in columns)], rows, 1)


def _name_columns(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and values of the columns that name a row; no column for variants where there are none."""
    names = [[row.label, row.budget, protocol_words(row.protocol)] for row in rows]
    headings = ["selector", "budget", "protocol"]
    if any(row.variant for row in rows):
        return ["variant", *headings], [[row.variant, *name] for row, name in zip(rows, names, strict=True)]
    return headings, names


def _interval(value: Interval, metric: Metric) -> str:
    return metric.shown(value.mean) + (f" ± {metric.shown(value.half_width)}" if value.has_width else "")


def _difference(value: Difference | None, metric: Metric, seeds: float) -> str:
    if value is None:
        return ""
    mean, low, high = (metric.shown(number, sign=True) for number in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]" + pairs_note(value, seeds)


def pairs_note(value: Difference, seeds: float) -> str:
    """Returns what is to be said of a difference over fewer pairs of runs than the row has seeds, or over one."""
    if value.seeds == 1:
        return " of items"
    return f" of {value.seeds} seeds" if value.seeds < seeds else ""


def flops_text(value: float) -> str:
    """Returns a number of FLOPs for a table; blank for 0."""
    return f"{value:.2e}" if value else ""
