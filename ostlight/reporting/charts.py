"""The chart of the page: how many samples have which score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ostlight.reporting.number_format import UnitScale, plain
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

WIDTH, HEIGHT = 880, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 866, 24, 260
"""Pixels of the edges of the area between the axes."""
BINS = 56
TAIL = 0.03
"""Share of the samples at each end that the outermost bar gathers: a few outliers would squeeze all the rest."""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels.

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

    def at(self, value: float) -> float:
        """Pixel of a value."""
        value = min(max(value, self.low), self.high)
        return round(self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and text of some round values."""
        return [(self.at(v), self.show(v)) for v in round_values(self.low, self.high)]


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


def round_values(low: float, high: float) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten between two values: three to eight of them."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(m * size for m in (5, 2, 1) if high - low >= 3 * m * size)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


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
