"""Numbers as text: short, with a unit and a true minus sign."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 2) -> str:
    """``+1.23``, with a true minus sign; ``0`` where rounding leaves nothing."""
    text = f"{value:+.{digits}f}"
    return "0" if not text.strip("+-0.") else text.replace("-", MINUS)


def plain(value: float, digits: int = 3) -> str:
    """That many significant digits, without an exponent where there is room."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.{digits}g}".replace("-", MINUS)


def flops(value: float) -> str:
    """``1.2e12``: two significant digits."""
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e") if value else "0"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``12 min``, ``3.4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """``12%``; one decimal below ten percent, so that small shares do not become 0%."""
    return f"{100 * share:.{0 if share >= 0.1 or share == 0 else 1}f}%"


def clipped(text: str, most: int) -> str:
    """The beginning of a long text, and how much was left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


@dataclass(frozen=True)
class UnitScale:
    """The unit in which a run's utilities are short numbers: ``value * factor`` in ``unit`` (empty for scores)."""

    factor: float
    unit: str

    @classmethod
    def of(cls, values: np.ndarray, in_nats: bool = True) -> UnitScale:
        """Chooses nats, millinats or micronats so that the larger values have one to three digits before the point."""
        if not in_nats:
            return cls(1.0, "")
        size = float(np.quantile(np.abs(values), 0.9)) if len(values) else 1.0
        if size >= 0.1 or size <= 0:
            return cls(1.0, "nats")
        return cls(1e3, "millinats") if size >= 1e-4 else cls(1e6, "micronats")

    def show(self, value: float) -> str:
        """Signed, in this unit, to about three digits."""
        size = abs(value * self.factor)
        digits = 3 if not self.unit and size < 1 else 2 if size < 10 else 1 if size < 100 else 0
        return signed(value * self.factor, digits)
