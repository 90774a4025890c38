"""What the rows of a comparison are compared by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure of a trained model on the test set, and how tables show it.

    Attributes:
        name: ``accuracy`` of generated answers, from 0 to 1; or ``loss``, the mean cross-entropy over the tokens of the
            expected answer, in nats.
        unit: it is shown in.
        difference_unit: of differences between two rows.
        scale: what it is shown times.
        digits: after the decimal point.
    """

    name: str
    unit: str
    difference_unit: str
    scale: float
    digits: int
    higher_is_better: bool

    @property
    def heading(self) -> str:
        return f"{self.name}, {self.unit}"

    def shown(self, value: float, sign: bool = False, fewer: int = 0) -> str:
        """Returns a value as text; ``fewer`` leaves out as many digits."""
        return f"{self.scale * value:{'+' if sign else ''}.{max(self.digits - fewer, 0)}f}"

    def gain(self, one: float, other: float) -> float:
        """Returns by how much the first value is better than the second; negative where it is worse."""
        return one - other if self.higher_is_better else other - one


METRICS = {
    "accuracy": Metric("accuracy", "%", "points", 100.0, 1, True),
    "loss": Metric("loss", "nats", "nats", 1.0, 3, False),
}
