"""Which rows of a comparison are Pareto-optimal in cost and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ostlight.benchmarking.results import ResultRow
from ostlight.config.schema import ORACLE
from ostlight.evaluation.answers import ALL


class CostAndAccuracy(NamedTuple):
    """Of one row; ``cost`` is ``nan`` where it is not known."""

    variant: str
    label: str
    cost: float
    accuracy: float


def pareto_optimal(points: Sequence[CostAndAccuracy]) -> list[bool]:
    """Returns for each point whether no other of its variant is at least as accurate for at most its cost.

    The untrained model takes part: a less accurate model is worth no cost. The oracle does not, since clean samples
    are not known in practice. Neither does a point of unknown cost.
    """
    compared = [point for point in points if point.label != ORACLE and point.cost == point.cost]
    return [point in compared and not any(_dominates(other, point) for other in compared) for point in points]


def pareto_optimal_rows(rows: Sequence[ResultRow]) -> list[bool]:
    """Returns ``pareto_optimal`` by the FLOPs of selection and training together."""
    return pareto_optimal(
        [CostAndAccuracy(row.variant, row.label, row.total_flops, row.accuracy[ALL].mean) for row in rows]
    )


def _dominates(one: CostAndAccuracy, other: CostAndAccuracy) -> bool:
    gain, saving = one.accuracy - other.accuracy, other.cost - one.cost
    return one.variant == other.variant and gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)
