"""The comparison as one image: how good each row is, and what it costs to get there. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ostlight.benchmarking.names import shared_settings, short_names
from ostlight.benchmarking.results import ResultRow, pareto_optimal
from ostlight.evaluation.answers import ALL

REFERENCE_COLOUR = "#9aa0a6"
TEXT_COLOUR, GRID_COLOUR = "#444444", "#e3e3e3"
COLOURS = ("#2e6f95", "#c97b2a", "#5b8c5a", "#8a5a83", "#b5473c", "#6b6b3a", "#3a8a8c", "#a0567a", "#4f5d75", "#9c7a3c")
ROW_INCHES = 0.27


@dataclass(frozen=True)
class _PlottedRow:
    row: ResultRow
    name: str
    colour: str
    is_pareto_optimal: bool

    @property
    def shown(self) -> float:
        return self.row.compared_by.scale * self.row.values[ALL].mean


def plot_rows(rows: Sequence[ResultRow], path: Path, title: str) -> None:
    """Writes a PNG: the metric of each row with its interval, and beside it the metric against the FLOPs of selection
    and training, with a line through the Pareto front. The second plot is left out where there are variants, each of
    which has a front of its own."""
    variants = {row.variant for row in rows if row.variant}
    height = max(ROW_INCHES * (len(rows) + 1.4 * len({row.variant for row in rows})) + 1.4, 4.2)
    figure = Figure(figsize=(8.5 if variants else 13, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 if variants else 2, squeeze=False)[0]
    labels = list(dict.fromkeys(row.label for row in rows if not row.is_reference))
    colours = {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(labels)}
    plotted = [
        _PlottedRow(row, name, colours.get(row.label, REFERENCE_COLOUR), is_optimal)
        for row, name, is_optimal in zip(rows, short_names(rows), pareto_optimal(rows), strict=True)
    ]
    _plot_values(axes[0], plotted)
    if not variants:
        _plot_cost(axes[1], [entry for entry in plotted if entry.row.total_flops])
    figure.suptitle(", ".join([title, *shared_settings(rows).phrases]), x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _plot_values(axes: Axes, plotted: Sequence[_PlottedRow]) -> None:
    """One line of the plot for each row, under a heading for each variant."""
    metric = plotted[0].row.compared_by
    y, ticks = 0.0, []
    variant: str | None = None
    for entry in plotted:
        row, value = entry.row, entry.row.values[ALL]
        if row.variant != variant and row.variant:
            y += 1.4 if variant is not None else 0.4
            transform = axes.get_yaxis_transform()
            axes.text(0.0, y, row.variant, fontweight="bold", fontsize=9, va="center", transform=transform)
            y += 1
        variant = row.variant
        half_width = metric.scale * value.half_width if value.has_width else 0.0
        error = half_width or None
        axes.errorbar(entry.shown, y, xerr=error, fmt="o", color=entry.colour, markersize=6, capsize=3)
        share = "" if row.defect_share is None else f", {100 * row.defect_share:.0f}% defective"
        axes.annotate(
            f"{metric.shown(value.mean)}{share}",
            (entry.shown + half_width, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=TEXT_COLOUR,
        )
        ticks.append((y, entry.name))
        y += 1
    axes.set_ylim(y - 0.3, -0.8)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=9)
    if metric.unit == "%":
        lowest = max(0, min(entry.shown for entry in plotted) - 5)
        axes.set_xlim(lowest, 118)
        axes.set_xticks(range(10 * (int(lowest) // 10 + 1), 101, 10))
    else:
        axes.margins(x=0.3)
    better = "" if metric.higher_is_better else ", lower is better"
    axes.set_xlabel(f"{metric.name} on the test set, {metric.unit}{better} (95% interval over seeds)")
    axes.grid(axis="x", color=GRID_COLOUR)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _plot_cost(axes: Axes, plotted: Sequence[_PlottedRow]) -> None:
    front = sorted((entry.row.total_flops, entry.shown) for entry in plotted if entry.is_pareto_optimal)
    axes.plot([x for x, _ in front], [y for _, y in front], color=TEXT_COLOUR, linewidth=1, linestyle=":", zorder=1)
    for entry in plotted:
        axes.plot(
            entry.row.total_flops,
            entry.shown,
            "o",
            color=entry.colour,
            markerfacecolor=entry.colour if entry.is_pareto_optimal else "white",
            markersize=8 if entry.is_pareto_optimal else 7,
            zorder=2,
        )
        text = axes.annotate(
            entry.name,
            (entry.row.total_flops, entry.shown),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=TEXT_COLOUR,
        )
        text.set_in_layout(False)  # a long name must not shrink the axes
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("FLOPs of selection and training (filled: Pareto-optimal)")
    axes.set_ylabel(plotted[0].row.compared_by.heading if plotted else "")
    axes.grid(color=GRID_COLOUR)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
