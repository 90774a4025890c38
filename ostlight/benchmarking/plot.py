"""The comparison as one image: how good each row is, and what it costs to get there. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from ostlight.benchmarking.names import shared_settings, short_names
from ostlight.benchmarking.results import ResultRow, pareto_optimal
from ostlight.evaluation.answers import ALL

REFERENCE_COLOUR = "#9aa0a6"
TEXT_COLOUR, GRID_COLOUR = "#444444", "#e3e3e3"
COLOURS = ("#2e6f95", "#c97b2a", "#5b8c5a", "#8a5a83", "#b5473c", "#6b6b3a", "#3a8a8c", "#a0567a", "#4f5d75", "#9c7a3c")
ROW_INCHES = 0.27
PLACES = tuple((0.0, y) for y in (11.0, -11.0, 22.0, -22.0, 33.0, -33.0))
"""Of a name, in points from its own."""
NARROW = 5.0
"""Factor between the FLOPs of the rows below which a logarithmic axis has too few round numbers to label."""
LEFT, RIGHT = 0.07, 0.35
"""Room beside the intervals, as shares of what they span; figures stand on the right."""
MARKER = 5.0
"""Half the size of a point, in pixels."""


@dataclass(frozen=True)
class _PlottedRow:
    row: ResultRow
    name: str
    colour: str
    is_pareto_optimal: bool | None

    @property
    def shown(self) -> float:
        return self.row.compared_by.scale * self.row.values[ALL].mean

    @property
    def half_width(self) -> float:
        """Of the interval; 0 where there is none."""
        value = self.row.values[ALL]
        return self.row.compared_by.scale * value.half_width if value.has_width else 0.0


def plot_rows(rows: Sequence[ResultRow], path: Path, title: str) -> None:
    """Writes a PNG: the metric of each row with its interval, and beside it the metric against the FLOPs of selection
    and training, with a line through the Pareto front. The second plot is left out where there are variants, each of
    which has a front of its own; rows that asked served models are not on it."""
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
        _plot_cost(axes[1], plotted)
    figure.suptitle(", ".join([title, *shared_settings(rows).phrases]), x=0.01, ha="left", fontsize=12)
    figure.draw_without_rendering()  # fixes where the axes are
    if not variants:
        _keep_apart(axes[1])
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
        error = entry.half_width or None
        axes.errorbar(entry.shown, y, xerr=error, fmt="o", color=entry.colour, markersize=6, capsize=3)
        share = "" if row.defect_share is None else f", {100 * row.defect_share:.0f}% defective"
        axes.annotate(
            f"{metric.shown(value.mean)}{share}",
            (entry.shown + entry.half_width, y),
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
    low = min(entry.shown - entry.half_width for entry in plotted)
    high = max(entry.shown + entry.half_width for entry in plotted)
    width = max(high - low, 10.0) if metric.unit == "%" else (high - low) or 1.0
    axes.set_xlim(low - LEFT * width, high + RIGHT * width)
    if metric.unit == "%":  # an interval may reach beyond what is possible
        axes.set_xticks(
            [x for x in MaxNLocator(12, steps=[1, 2, 5, 10]).tick_values(*axes.get_xlim()) if 0 <= x <= 100]
        )
        axes.set_xlim(low - LEFT * width, high + RIGHT * width)
    better = "" if metric.higher_is_better else ", lower is better"
    axes.set_xlabel(f"{metric.name} on the test set, {metric.unit}{better} (95% interval over seeds)")
    axes.grid(axis="x", color=GRID_COLOUR)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _plot_cost(axes: Axes, rows: Sequence[_PlottedRow]) -> None:
    plotted = [entry for entry in rows if entry.row.total_flops and entry.row.is_cost_in_flops]
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
            xytext=PLACES[0],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=TEXT_COLOUR,
        )
        text.set_in_layout(False)  # a long name must not shrink the axes
    axes.set_xscale("log")
    flops = [entry.row.total_flops for entry in plotted]
    is_narrow = bool(flops) and max(flops) < NARROW * min(flops)
    axes.xaxis.set_major_locator(MaxNLocator(5) if is_narrow else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.1e}".replace(".0e", "e").replace("e+", "e"))
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.1)
    left_out = "" if all(entry.row.is_cost_in_flops for entry in rows) else "\nnot shown: what asked served models"
    axes.set_xlabel(f"FLOPs of selection and training (filled: Pareto-optimal){left_out}")
    axes.set_ylabel(plotted[0].row.compared_by.heading if plotted else "")
    axes.grid(color=GRID_COLOUR)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _keep_apart(axes: Axes) -> None:
    """Moves each name to the first place beside its point where it covers no other name and no other point, else
    leaves it where it covers least."""
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    placed: list[Bbox] = []
    for name in names:
        own = axes.transData.transform(name.xy)
        others = [axes.transData.transform(other.xy) for other in names if other is not name]
        points = [Bbox.from_extents(*(at - MARKER), *(at + MARKER)) for at in others if abs(at - own).max() > 1]
        covered = {}
        for place in PLACES:
            name.xyann = place
            covered[place] = name.get_window_extent().count_overlaps([*placed, *points])
        name.xyann = min(PLACES, key=covered.__getitem__)
        placed.append(name.get_window_extent())
