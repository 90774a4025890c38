"""How the utilities are spread, what was kept of them, and where the budgets draw their lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ostlight.reporting.axes import Axis
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.figures import Scale, signed, tick
from ostlight.reporting.picks import Pick

BINS = 56
TAIL = 0.005
"""Share at each end that is gathered in the outermost bar: a few outliers would squeeze all the rest."""
HEAVY = 12
"""Spread of the shown scores over that of their middle half, above which the axis is logarithmic away from zero."""
WIDE, NARROW = (880, 300), (400, 300)
"""Sizes in pixels: of a screen, and of a telephone held upright."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40


@dataclass(frozen=True)
class Bar:
    """One part of a bar: ``kept``, ``dropped``, ``toxic`` or ``scored``."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    told: str


@dataclass(frozen=True)
class Line:
    """A budget's line; ``anchor`` says which side its text stands on, ``row`` how far down."""

    x: float
    text: str
    anchor: str
    row: int


@dataclass(frozen=True)
class Histogram:
    width: int
    height: int
    bars: list[Bar]
    lines: list[Line]
    zero: float | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    bottom: float
    top: float
    left: float
    right: float
    x_label: str
    bent: bool


def histogram(
    evidence: Evidence, pick: Pick | None, lines: dict[str, float], scale: Scale, size: tuple[int, int]
) -> Histogram:
    """Samples by score, stacked by what became of them.

    Args:
        pick: what was kept, ``None`` where nothing was picked.
        lines: score of each budget's line, by its text.
        size: width and height.
    """
    width, height = size
    shown = evidence.score * scale.factor
    low, high = (float(v) for v in np.quantile(shown, [TAIL, 1 - TAIL]))
    if low == high:
        low, high = low - 1, high + 1
    bins = BINS if width >= WIDE[0] else BINS // 2
    x = Axis(low, high, LEFT, width - RIGHT, linear_to=_linear_to(shown, low, high))
    edges = np.array(x.edges(bins))
    x = replace(x, low=float(edges[0]), high=float(edges[-1]))
    bins = len(edges) - 1
    place = np.clip(np.digitize(shown, edges) - 1, 0, bins - 1)
    counts = {kind: np.bincount(place[mask], minlength=bins) for kind, mask in _kinds(evidence, pick).items()}
    tallest = int(np.sum(list(counts.values()), axis=0).max())
    y = Axis(0, tallest * 1.05, height - BOTTOM, TOP)
    return Histogram(
        width=width,
        height=height,
        bars=_bars(counts, edges, x, y),
        lines=_lines({text: line * scale.factor for text, line in lines.items()}, x),
        zero=x.at(0) if low < 0 < high else None,
        x_ticks=x.ticks(width // 90, tick),
        y_ticks=y.ticks(6, lambda v: f"{v:,.0f}"),
        bottom=height - BOTTOM,
        top=TOP,
        left=LEFT,
        right=width - RIGHT,
        x_label=f"utility, {scale.unit}" if scale.unit else "score",
        bent=x.linear_to is not None,
    )


def _linear_to(shown: np.ndarray, low: float, high: float) -> float | None:
    """Where the axis begins to bend: the typical size of a score; ``None`` where none is far out."""
    quarter, three = np.quantile(shown, [0.25, 0.75])
    if high - low <= HEAVY * (three - quarter):
        return None
    return float(np.median(np.abs(shown))) or None


def _kinds(evidence: Evidence, pick: Pick | None) -> dict[str, np.ndarray]:
    """From the bottom of a bar to its top."""
    if pick is None:
        return {"scored": ~evidence.toxic, "toxic": evidence.toxic}
    dropped = ~pick.kept
    return {"kept": pick.kept, "dropped": dropped & ~evidence.toxic, "toxic": dropped & evidence.toxic}


def _bars(counts: dict[str, np.ndarray], edges: np.ndarray, x: Axis, y: Axis) -> list[Bar]:
    bars = []
    below = np.zeros(len(edges) - 1, np.int64)
    for kind, count in counts.items():
        for k in np.flatnonzero(count):
            left, right = x.at(edges[k]), x.at(edges[k + 1])
            foot, top = y.at(float(below[k])), y.at(float(below[k] + count[k]))
            told = f"{count[k]:,} {kind}, {signed(edges[k])} to {signed(edges[k + 1])}"
            bars.append(Bar(kind, left + 0.5, top, round(max(0.5, right - left - 1), 2), round(foot - top, 2), told))
        below += count
    return bars


def _lines(lines: dict[str, float], x: Axis) -> list[Line]:
    # A text stands towards the middle, and higher than the lines it reaches over: those begin below it.
    middle = (x.begin + x.end) / 2
    placed = sorted((x.at(value), text) for text, value in lines.items())
    left, right = ([p for p in placed if (p[0] < middle) is side] for side in (True, False))
    sides = [*((*p, "start") for p in left), *((*p, "end") for p in reversed(right))]
    return [Line(at, text, anchor, row) for row, (at, text, anchor) in enumerate(sides)]
