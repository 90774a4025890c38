"""The histogram of the utilities: what was kept, and each budget's cutoff."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ostlight.reporting.axes import WIDE, Axis, Chart
from ostlight.reporting.number_format import UnitScale, signed, tick
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

BINS = 56
TAIL = 0.005
"""Share of the samples at each end that the outermost bar gathers: a few outliers would squeeze all the rest."""
HEAVY_TAILED = 12
"""Ratio of the shown range to the interquartile range above which the axis is logarithmic away from zero."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 44, 40


@dataclass(frozen=True)
class Bar:
    """The part of a bar for one ``state``: ``kept``, ``dropped``, ``toxic`` or ``scored``."""

    state: str
    x: float
    y: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True)
class Cutoff:
    """A budget's vertical line. Its text starts or ends at the line (``anchor``), in its own row from the top."""

    x: float
    text: str
    anchor: str
    row: int


@dataclass(frozen=True)
class Histogram(Chart):
    """``zero``: pixel of utility 0, ``None`` where it is off the axis. ``is_asinh``: logarithmic away from zero."""

    bars: list[Bar]
    cutoffs: list[Cutoff]
    zero: float | None
    is_asinh: bool


def histogram(
    scores: ScoreColumns,
    selection: Selection | None,
    cutoffs: dict[str, float],
    scale: UnitScale,
    size: tuple[int, int],
) -> Histogram:
    """Counts samples by score, stacked by state.

    Args:
        selection: what was kept, ``None`` where nothing was selected yet.
        cutoffs: score at each budget's cutoff, by its text.
        size: width and height in pixels.
    """
    width, height = size
    shown = scores.score * scale.factor
    low, high = (float(v) for v in np.quantile(shown, [TAIL, 1 - TAIL]))
    if low == high:
        low, high = low - 1, high + 1
    x = Axis(low, high, LEFT, width - RIGHT, linear_width=_linear_width(shown, low, high))
    edges = np.array(x.edges(BINS if width >= WIDE[0] else BINS // 2))
    x = replace(x, low=float(edges[0]), high=float(edges[-1]))
    bins = len(edges) - 1
    bin_of = np.clip(np.digitize(shown, edges) - 1, 0, bins - 1)
    counts = {state: np.bincount(bin_of[mask], minlength=bins) for state, mask in _states(scores, selection).items()}
    tallest = int(np.sum(list(counts.values()), axis=0).max())
    y = Axis(0, tallest * 1.05, height - BOTTOM, TOP)
    return Histogram(
        width=width,
        height=height,
        left=LEFT,
        right=width - RIGHT,
        top=TOP,
        bottom=height - BOTTOM,
        x_ticks=x.ticks(width // 90, tick),
        y_ticks=y.ticks(6, lambda v: f"{v:,.0f}"),
        x_label=f"utility, {scale.unit}" if scale.unit else "score",
        y_label="samples",
        bars=_bars(counts, edges, x, y),
        cutoffs=_cutoffs({text: score * scale.factor for text, score in cutoffs.items()}, x),
        zero=x.at(0) if low < 0 < high else None,
        is_asinh=x.linear_width is not None,
    )


def _linear_width(shown: np.ndarray, low: float, high: float) -> float | None:
    """The typical size of a score, from which on the axis is logarithmic; ``None`` without heavy tails."""
    lower, upper = np.quantile(shown, [0.25, 0.75])
    if high - low <= HEAVY_TAILED * (upper - lower):
        return None
    return float(np.median(np.abs(shown))) or None


def _states(scores: ScoreColumns, selection: Selection | None) -> dict[str, np.ndarray]:
    """``[N]`` masks, from the bottom of a bar to its top."""
    if selection is None:
        return {"scored": ~scores.toxic, "toxic": scores.toxic}
    dropped = ~selection.kept
    return {"kept": selection.kept, "dropped": dropped & ~scores.toxic, "toxic": dropped & scores.toxic}


def _bars(counts: dict[str, np.ndarray], edges: np.ndarray, x: Axis, y: Axis) -> list[Bar]:
    bars = []
    below = np.zeros(len(edges) - 1, np.int64)
    for state, count in counts.items():
        for k in np.flatnonzero(count):
            left, right = x.at(edges[k]), x.at(edges[k + 1])
            bottom, top = y.at(float(below[k])), y.at(float(below[k] + count[k]))
            tooltip = f"{count[k]:,} {state}, {signed(edges[k])} to {signed(edges[k + 1])}"
            width = round(max(0.5, right - left - 1), 2)
            bars.append(Bar(state, left + 0.5, top, width, round(bottom - top, 2), tooltip))
        below += count
    return bars


def _cutoffs(cutoffs: dict[str, float], x: Axis) -> list[Cutoff]:
    # A text extends towards the middle, above the lines it crosses: those begin below it.
    middle = (x.begin + x.end) / 2
    placed = sorted((x.at(score), text) for text, score in cutoffs.items())
    left, right = ([p for p in placed if (p[0] < middle) is side] for side in (True, False))
    anchored = [*((*p, "start") for p in left), *((*p, "end") for p in reversed(right))]
    return [Cutoff(at, text, anchor, row) for row, (at, text, anchor) in enumerate(anchored)]
