"""Which lines of a comparison nothing beats in both cost and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ostlight.benchmarking.results import ResultRow
from ostlight.config.schema import ORACLE
from ostlight.evaluation.answers import ALL


class Offer(NamedTuple):
    """An accuracy, and what it costs in all; ``nan`` where that is not known."""

    variant: str
    label: str
    cost: float
    accuracy: float


def on_front(offers: Sequence[Offer]) -> list[bool]:
    """Whether no other offer of its variant is at least as accurate for no more.

    The untrained model takes part: what is worse than it is worth no cost. The oracle does not, since nobody can buy
    it, nor does what has no known cost.
    """
    rivals = [offer for offer in offers if offer.label != ORACLE and offer.cost == offer.cost]
    return [offer in rivals and not any(_beats(rival, offer) for rival in rivals) for offer in offers]


def pareto_front(lines: Sequence[ResultRow]) -> list[bool]:
    """``on_front`` by the FLOPs of selection and training together."""
    return on_front([Offer(x.variant, x.label, x.total_flops, x.accuracy[ALL].mean) for x in lines])


def _beats(one: Offer, other: Offer) -> bool:
    if one.variant != other.variant:
        return False
    gain, saving = one.accuracy - other.accuracy, other.cost - one.cost
    return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)
