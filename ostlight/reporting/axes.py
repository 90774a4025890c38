"""The axes of a chart: pixels for values, and round tick values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Tick = tuple[float, str]
"""Pixel and text."""
WIDE, NARROW = (880, 300), (400, 300)
"""Sizes of a chart in pixels: for a screen, and for a phone held upright."""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, linearly or by their logarithm.

    Attributes:
        low, high: values at the two ends.
        begin, end: pixels of the two ends.
        logarithmic: for values above 0.
        linear_width: linear up to about this size and logarithmic beyond, on both sides of 0 (the inverse hyperbolic
            sine); ``None`` is linear throughout.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False
    linear_width: float | None = None

    def at(self, value: float) -> float:
        """Pixel of a value; values beyond an end are drawn at that end."""
        low, high, value = (self.scaled(v) for v in (self.low, self.high, max(self.low, min(self.high, value))))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.begin + share * (self.end - self.begin), 2)

    def ticks(self, wanted: int, show: Callable[[float], str]) -> list[Tick]:
        """Round values on the axis, about that many."""
        if self.linear_width is not None:
            values = self._asinh_values(wanted)
        else:
            values = self._log_values(wanted) if self.logarithmic else self._linear_values(wanted)
        return [(self.at(v), show(v)) for v in values]

    def edges(self, bins: int) -> list[float]:
        """Values that divide the axis into about that many bins of equal width in pixels.

        Where 0 is within the axis it is an edge, so that no bin holds values of both signs; the outermost edges then
        lie a little beyond the axis.
        """
        low, high = self.scaled(self.low), self.scaled(self.high)
        step = (high - low) / bins
        if not low < 0 < high or self.logarithmic:
            return [self._unscaled(low + k * step) for k in range(bins + 1)]
        return [self._unscaled(k * step) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]

    def scaled(self, value: float) -> float:
        if self.linear_width is not None:
            return math.asinh(value / self.linear_width)
        return math.log10(value) if self.logarithmic else value

    def _unscaled(self, value: float) -> float:
        if self.linear_width is not None:
            return math.sinh(value) * self.linear_width
        return 10**value if self.logarithmic else value

    def _asinh_values(self, wanted: int) -> list[float]:
        """0 and round numbers of both signs, none closer than ``wanted`` evenly spaced ticks would be."""
        distance = abs(self.end - self.begin) / max(1, wanted)
        values = [0.0] if self.low <= 0 <= self.high else []
        sizes = [m * 10.0**e for e in range(-9, 10) for m in (1, 2, 5)]
        for value in [sign * size for size in sizes for sign in (1, -1)]:
            if self.low <= value <= self.high and all(abs(self.at(value) - self.at(v)) >= distance for v in values):
                values.append(value)
        return sorted(values)

    def _linear_values(self, wanted: int) -> list[float]:
        rough = (self.high - self.low) / max(1, wanted)
        if rough <= 0:
            return [self.low]
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _log_values(self, wanted: int) -> list[float]:
        low, high = math.floor(self.scaled(self.low)), math.ceil(self.scaled(self.high))
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**e for e in range(low, high + 1) for m in digits if self.low <= m * 10.0**e <= self.high]
            if len(values) <= wanted:
                return values
        return values[:: math.ceil(len(values) / wanted)]


@dataclass(frozen=True)
class Chart:
    """What every chart has; ``templates/axes.html`` draws it.

    Attributes:
        left, right, top, bottom: pixels of the area between the axes.
        x_label, y_label: what is on the axis, with its unit.
    """

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str
