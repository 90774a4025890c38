"""The chart of accuracy against the total cost of selection and training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostlight.config.schema import BASE
from ostlight.evaluation.answers import ALL
from ostlight.reporting.axes import Axis, Chart
from ostlight.reporting.number_format import duration, prefixed
from ostlight.reporting.results_table import TableRow

LEFT, RIGHT, TOP, BOTTOM = 46, 16, 22, 42
LETTER, LINE_HEIGHT = 6.6, 15
"""Width of a letter and height of a line of text, pixels."""
XY = tuple[float, float]
COST_LABELS = {
    "device_s": "device time of selection and training",
    "flops": "FLOPs of selection and training",
}


@dataclass(frozen=True)
class NameLabel:
    """The name of a point, beside it."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Point:
    """A row of the results table.

    Attributes:
        number: in the mark and in the legend.
        low, high: pixels of the ends of the accuracy's 95% interval.
        kind: ``reference``, ``front`` or ``behind``.
        label: ``None`` where there is no space; the legend names it.
    """

    number: int
    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str
    label: NameLabel | None
    tooltip: str


@dataclass(frozen=True)
class ParetoChart(Chart):
    """``front``: SVG path of the Pareto front. ``base``: pixel and text of the untrained model's accuracy."""

    points: list[Point]
    front: str
    base: tuple[float, str] | None


def pareto_chart(rows: Sequence[TableRow], cost: str, size: tuple[int, int]) -> ParetoChart | None:
    """Draws one kind of cost; ``None`` where fewer than two rows have a cost."""
    width, height = size
    paid = [row for row in rows if row.cost(cost) > 0]
    if len(paid) < 2:
        return None
    base = next((100 * row.accuracy[ALL].mean for row in rows if row.label == BASE), None)
    x = _cost_axis([row.cost(cost) for row in paid], width)
    intervals = [_interval(row) for row in paid]
    y = _accuracy_axis([*itertools.chain(*intervals), *([] if base is None else [base])], height)
    show: Callable[[float], str] = duration if cost == "device_s" else prefixed
    marks = [(x.at(row.cost(cost)), y.at(100 * row.accuracy[ALL].mean)) for row in paid]
    corners = _front_corners([xy for xy, row in zip(marks, paid, strict=True) if row.on_front[cost]], width - RIGHT)
    labels = _place_labels([row.name for row in paid], marks, corners, width)
    points = [
        Point(
            number=k + 1,
            name=row.name,
            x=marks[k][0],
            y=marks[k][1],
            low=y.at(intervals[k][0]),
            high=y.at(intervals[k][1]),
            kind="reference" if row.is_reference else "front" if row.on_front[cost] else "behind",
            label=labels[k],
            tooltip=f"{row.name}: {100 * row.accuracy[ALL].mean:.1f}%, {show(row.cost(cost))}",
        )
        for k, row in enumerate(paid)
    ]
    return ParetoChart(
        width=width,
        height=height,
        left=LEFT,
        right=width - RIGHT,
        top=TOP,
        bottom=height - BOTTOM,
        x_ticks=x.ticks(width // 110, show),
        y_ticks=y.ticks(5, lambda v: f"{v:g}"),
        x_label=COST_LABELS[cost],
        y_label="test accuracy, %",
        points=points,
        front="M" + "L".join(f"{x} {y}" for x, y in corners) if corners else "",
        base=None if base is None else (y.at(base), f"untrained model {base:.1f}%"),
    )


def _cost_axis(costs: list[float], width: int) -> Axis:
    low, high = min(costs), max(costs)
    if high > 8 * low:
        return Axis(low / 1.3, high * 1.3, LEFT, width - RIGHT, logarithmic=True)
    padding = 0.12 * ((high - low) or high)
    return Axis(max(0.0, low - padding), high + padding, LEFT, width - RIGHT)


def _accuracy_axis(values: list[float], height: int) -> Axis:
    low, high = min(values), max(values)
    padding = max(1.0, 0.08 * (high - low))
    return Axis(max(0, low - padding), min(100, high + padding), height - BOTTOM, TOP)


def _interval(row: TableRow) -> XY:
    """Ends of the accuracy's 95% interval, percent; both the mean for a single seed."""
    mean, half = row.accuracy[ALL].mean, row.accuracy[ALL].half_width
    half = 0.0 if half != half else half
    return 100 * (mean - half), 100 * (mean + half)


def _front_corners(front: list[XY], right: float) -> list[XY]:
    """The front as a polyline: flat until something more expensive is better."""
    corners: list[XY] = []
    for x, y in sorted(front):
        corners += [*([(x, corners[-1][1])] if corners else []), (x, y)]
    return [*corners, (right, corners[-1][1])] if corners else []


def _place_labels(names: list[str], marks: list[XY], front: list[XY], width: int) -> list[NameLabel | None]:
    """Puts each name at the first of six positions around its mark that is free; ``None`` where all are taken."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in marks]
    taken += [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in itertools.pairwise(front)]
    labels: list[NameLabel | None] = []
    for name, (x, y) in zip(names, marks, strict=True):
        length = LETTER * len(name)
        candidates = [(x + 13, y + 4, "start"), (x - 13, y + 4, "end"), (x, y - 14, "middle"), (x, y + 23, "middle")]
        candidates += [(x + 11, y - 11, "start"), (x + 11, y + 19, "start")]
        label = None
        for text_x, text_y, anchor in candidates:
            begin = {"start": text_x, "end": text_x - length, "middle": text_x - length / 2}[anchor]
            box = (begin, text_y - LINE_HEIGHT + 3, begin + length, text_y + 3)
            is_free = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if is_free and box[0] > LEFT and box[2] < width - RIGHT + 10:
                taken.append(box)
                label = NameLabel(round(text_x, 1), round(text_y, 1), anchor)
                break
        labels.append(label)
    return labels
