"""The two charts of the page: how many samples have which score, and accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ostlight.evaluation.answers import ALL
from ostlight.reporting.number_format import UnitScale, duration, flops, plain
from ostlight.reporting.results_table import ResultsRow
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

WIDTH, HEIGHT = 880, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 866, 24, 260
"""Pixels of the edges of the area between the axes."""
BINS = 56
TAIL = 0.03
"""Share of the samples at each end that the outermost bar gathers: a few outliers would squeeze all the rest."""
MOST_TICKS = 8


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, by their logarithm if ``is_logarithmic``.

    Attributes:
        label: what is on the axis, with its unit.
        low, high: values at the two ends; those beyond are drawn at the end.
        begin, end: pixels of the two ends.
        show: text of a value.
    """

    label: str
    low: float
    high: float
    begin: float
    end: float
    show: Callable[[float], str]
    is_logarithmic: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(v) if self.is_logarithmic else v for v in (self.low, self.high, value))
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and text of some round values."""
        values = round_magnitudes if self.is_logarithmic else round_values
        return [(self.at(v), self.show(v)) for v in values(self.low, self.high)]


class Bar(NamedTuple):
    """Samples of one ``state`` (``kept``, ``dropped``, ``toxic`` or ``scored``) with scores from ``low`` to ``high``,
    on top of ``below`` others."""

    state: str
    low: float
    high: float
    below: int
    samples: int


class Histogram(NamedTuple):
    """``cutoffs``: score at the cutoff of each budget, by its text."""

    x: Axis
    y: Axis
    bars: list[Bar]
    cutoffs: dict[str, float]


class CostChart(NamedTuple):
    """``rows``: those with a cost, which are numbered in this order."""

    x: Axis
    y: Axis
    rows: list[ResultsRow]


def histogram(
    scores: ScoreColumns, selection: Selection | None, cutoffs: dict[str, float], scale: UnitScale
) -> Histogram:
    """Counts samples by score, stacked by state.

    Args:
        selection: what was kept, ``None`` where nothing was selected yet.
        cutoffs: score at the cutoff of each budget, by its text.
    """
    shown = scores.score * scale.factor
    edges = _bin_edges(shown)
    clipped = np.clip(shown, edges[0], edges[-1])
    bars, below = [], np.zeros(len(edges) - 1, int)
    for state, mask in _states(scores, selection).items():
        counts = np.histogram(clipped[mask], edges)[0]
        bars += [Bar(state, edges[k], edges[k + 1], below[k], counts[k]) for k in np.flatnonzero(counts)]
        below += counts
    label = f"utility, {scale.unit}" if scale.unit else "score"
    return Histogram(
        Axis(label, edges[0], edges[-1], LEFT, RIGHT, lambda v: plain(v, 6)),
        Axis("samples", 0, 1.2 * below.max(), BOTTOM, TOP, "{:,.0f}".format),
        bars,
        {text: score * scale.factor for text, score in cutoffs.items()},
    )


def cost_chart(rows: Sequence[ResultsRow], cost: str) -> CostChart | None:
    """Plots accuracy against one kind of cost; ``None`` where fewer than two rows have a cost."""
    paid = [row for row in rows if row.cost(cost) > 0]
    if len(paid) < 2:
        return None
    name, show = ("device time", duration) if cost == "device_s" else ("FLOPs", flops)
    costs = [row.cost(cost) for row in paid]
    shown = [end for row in rows for end in row.accuracy[ALL].ends]
    low, high = max(0, min(shown) - 0.02), min(1, max(shown) + 0.02)
    return CostChart(
        Axis(f"{name} of selection and training", min(costs) / 2, max(costs) * 2, LEFT, RIGHT, show, True),
        Axis("test accuracy, %", low, high, BOTTOM, TOP, lambda v: f"{100 * v:.3g}"),
        paid,
    )


def round_values(low: float, high: float) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten between two values: three to eight of them."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(m * size for m in (5, 2, 1) if high - low >= 3 * m * size)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def round_magnitudes(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two values; the powers alone where that is too many."""
    powers = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    values = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    return values if len(values) <= MOST_TICKS else [power for power in powers if low <= power <= high]


def _bin_edges(shown: np.ndarray) -> np.ndarray:
    """About ``BINS`` equal bins. 0 is an edge where it is among the scores, so no bin holds values of both signs."""
    low, high = (float(v) for v in np.quantile(shown, [TAIL, 1 - TAIL]))
    width = (high - low) / BINS or 1.0
    return width * np.arange(math.floor(low / width), math.floor(high / width) + 2)


def _states(scores: ScoreColumns, selection: Selection | None) -> dict[str, np.ndarray]:
    """``[N]`` masks, from the bottom of a bar to its top."""
    if selection is None:
        return {"scored": ~scores.toxic, "toxic": scores.toxic}
    dropped = ~selection.kept
    return {"kept": selection.kept, "dropped": dropped & ~scores.toxic, "toxic": dropped & scores.toxic}
