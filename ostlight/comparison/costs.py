"""What a line of a comparison costs in all, and which lines nothing beats."""

from __future__ import annotations

from collections.abc import Sequence

from ostlight.comparison.results import Line
from ostlight.config.schema import ORACLE
from ostlight.evaluation.evaluate import ALL


def pareto_front(lines: Sequence[Line]) -> list[bool]:
    """Whether no other line of its variant is at least as accurate for no more FLOPs (selection and training).

    The oracle takes no part: nobody can buy it.
    """
    return [line.label != ORACLE and not any(_beats(other, line) for other in lines) for line in lines]


def _beats(one: Line, other: Line) -> bool:
    if one is other or one.variant != other.variant or one.label == ORACLE:
        return False
    gain, saving = one.accuracy[ALL].mean - other.accuracy[ALL].mean, other.total_flops - one.total_flops
    return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)
