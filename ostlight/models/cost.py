"""What a stage cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ADDITIVE = ("flops", "tokens", "samples", "calls", "tokens_in", "tokens_out", "price")
"""What the ranks of a stage count each for itself."""


@dataclass
class StageCost:
    """One stage's cost.

    Attributes:
        stage: ``warm-up``, ``score``, ``select``, ``train``, ``evaluate``.
        selector: whose cost it is, as shown in tables.
        wall_s: seconds on the clock.
        device_s: ``wall_s`` times the number of devices held.
        flops: floating-point operations of matrix products and attention, counted on a few batches and scaled by
            tokens.
        tokens: tokens read by the proxy or target, padding left out.
        samples: samples treated.
        calls: requests to a served model.
        tokens_in, tokens_out: tokens of those requests and of their answers.
        price: money they cost, in the price table's currency.
        resumed: the stage took up earlier work, which an earlier line counts.
    """

    stage: str
    selector: str = ""
    wall_s: float = 0.0
    device_s: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    samples: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0
    resumed: bool = False
    more: dict[str, Any] = field(default_factory=dict)
