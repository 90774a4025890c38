"""The comparison as one picture: how accurate each line is, and what it costs to get there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ostlight.benchmarking.names import in_common, short_names
from ostlight.benchmarking.pareto import pareto_front
from ostlight.benchmarking.results import ResultRow
from ostlight.config.schema import BASE, ORACLE
from ostlight.evaluation.answers import ALL

FRAME = "#9aa0a6"
COLOURS = ("#2e6f95", "#c97b2a", "#5b8c5a", "#8a5a83", "#b5473c", "#6b6b3a", "#3a8a8c", "#a0567a", "#4f5d75", "#9c7a3c")
MARKS = {"equal_steps": "o", "equal_epochs": "s", "": "D"}
ROW_INCHES = 0.27
BESIDE, LETTER = 0.02, 0.0115
"""Between a point and its name, and a letter's width; of the axes' width."""
LINE = 1 / 24
"""A name's height, of the axes'."""


def draw(lines: Sequence[ResultRow], path: Path, title: str) -> None:
    """Accuracy with its interval, a row for each line; beside it accuracy against selection and training FLOPs, the
    Pareto front drawn through (left out where there are variants, each of which has a front of its own)."""
    with_front = not any(line.variant for line in lines)
    height = ROW_INCHES * (len(lines) + 1.4 * len({line.variant for line in lines})) + 1.4
    figure, axes = plt.subplots(
        1,
        2 if with_front else 1,
        figsize=(13 if with_front else 8.5, max(height, 4.2)),
        layout="constrained",
        squeeze=False,
    )
    labels = list(dict.fromkeys(line.label for line in lines if line.label not in (BASE, ORACLE)))
    colours = {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(labels)} | {BASE: FRAME, ORACLE: FRAME}
    names = short_names(lines)
    _draw_rows(axes[0][0], lines, names, colours)
    if with_front:
        _draw_front(axes[0][1], lines, names, colours)
    figure.suptitle(", ".join([title, *in_common(lines).words]), x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _draw_rows(axes: Axes, lines: Sequence[ResultRow], names: Sequence[str], colours: dict[str, str]) -> None:
    y, ticks = 0.0, []
    variant: str | None = None
    low = min(100 * line.accuracy[ALL].mean for line in lines)
    for line, name in zip(lines, names, strict=True):
        if line.variant != variant and line.variant:
            y += 1.4 if variant is not None else 0.4
            axes.text(
                0.0, y, line.variant, fontweight="bold", fontsize=9, va="center", transform=axes.get_yaxis_transform()
            )
            y += 1
        variant = line.variant
        value = line.accuracy[ALL]
        half = 0.0 if value.half != value.half else 100 * value.half
        colour, mark = colours[line.label], MARKS.get(line.protocol, "o")
        axes.errorbar(100 * value.mean, y, xerr=half or None, fmt=mark, color=colour, markersize=6, capsize=3)
        share = "" if line.defect_share is None else f", {100 * line.defect_share:.0f}% defective"
        axes.annotate(
            f"{100 * value.mean:.1f}{share}",
            (100 * value.mean + half, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="#444444",
        )
        ticks.append((y, name))
        y += 1
    axes.set_ylim(y - 0.3, -0.8)
    axes.set_yticks([t for t, _ in ticks], [n for _, n in ticks], fontsize=9)
    axes.set_xlim(max(0, low - 5), 118)
    axes.set_xticks(range(10 * (int(max(0, low - 5)) // 10 + 1), 101, 10))
    axes.set_xlabel("accuracy on the test set, % (95% interval over seeds)")
    axes.grid(axis="x", color="#e3e3e3")
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_front(axes: Axes, lines: Sequence[ResultRow], names: Sequence[str], colours: dict[str, str]) -> None:
    shown = [(line, n, f) for line, n, f in zip(lines, names, pareto_front(lines), strict=True) if line.total_flops]
    front = sorted((line.total_flops, 100 * line.accuracy[ALL].mean) for line, _, on in shown if on)
    axes.plot([x for x, _ in front], [y for _, y in front], color="#444444", linewidth=1, linestyle=":", zorder=1)
    for line, _, on in shown:
        face = colours[line.label] if on else "white"
        axes.plot(
            line.total_flops,
            100 * line.accuracy[ALL].mean,
            MARKS.get(line.protocol, "o"),
            color=colours[line.label],
            markerfacecolor=face,
            markersize=8 if on else 7,
            zorder=2,
        )
    places = [(x.total_flops, 100 * x.accuracy[ALL].mean, _without_protocol(x, n)) for x, n, _ in shown]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.1)
    _name_points(axes, places)
    protocols = list(dict.fromkeys(line.protocol for line, _, _ in shown))
    if len(protocols) > 1:
        named = [(p.replace("_", " "), MARKS[p]) for p in protocols]
        marks = [Line2D([], [], marker=m, color="#444444", linestyle="", label=name) for name, m in named]
        axes.legend(handles=marks, frameon=False, fontsize=9, loc="upper left")
    axes.set_xlabel("FLOPs of selection and training (filled: nothing is better for less)")
    axes.set_ylabel("accuracy, %")
    axes.grid(color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _without_protocol(line: ResultRow, name: str) -> str:
    """The mark's shape tells it."""
    return name.removesuffix(line.protocol.replace("_", " ")).strip()


def _name_points(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Names beside their points, on the side with more room, each at the nearest height where it covers nothing."""
    if not points:
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    across = {x: math.log(x / left) / math.log(right / left) for x, _, _ in points}
    gap = LINE * (top - bottom)
    taken = [(across[x] - BESIDE / 2, across[x] + BESIDE / 2, y) for x, y, _ in points]
    rows = [bottom + (k + 0.5) * gap for k in range(round(1 / LINE))]
    for x, y, name in sorted(points, key=lambda p: p[1]):
        inner = 1 if across[x] < 0.5 else -1
        tried = [
            (inner, y),
            *((side, row) for row in sorted(rows, key=lambda r: abs(r - y)) for side in (inner, -inner)),
        ]
        spans = [(side, row, *_span(across[x], side, name)) for side, row in tried]
        free = (s for s in spans if s[2] >= 0 and s[3] <= 1 and not any(_covers(*s[1:], t, gap) for t in taken))
        side, at, start, stop = next(free, spans[0])
        taken.append((start, stop, at))
        leader = {"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.6} if at != y else None
        told = axes.annotate(
            name,
            (x, y),
            (left * (right / left) ** (start if side > 0 else stop), at),
            fontsize=8,
            va="center",
            ha="left" if side > 0 else "right",
            color="#444444",
            arrowprops=leader,
        )
        told.set_in_layout(False)  # a name must not push the axes to nothing


def _span(at: float, side: int, name: str) -> tuple[float, float]:
    """Where a name begins and ends on that side of its point."""
    near, far = at + side * BESIDE, at + side * (BESIDE + len(name) * LETTER)
    return min(near, far), max(near, far)


def _covers(y: float, start: float, stop: float, taken: tuple[float, float, float], gap: float) -> bool:
    return abs(y - taken[2]) < 0.95 * gap and start < taken[1] and taken[0] < stop
