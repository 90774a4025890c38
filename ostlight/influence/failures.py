"""Which samples of a pass cannot be scored, and why."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ostlight.errors import BadRecord
from ostlight.influence.gradients.engine import SampleProducts


def failures(products: SampleProducts) -> dict[str, Any]:
    """A ``failure`` column for the samples whose loss or gradient is not finite; nothing where all are."""
    where = products.non_finite()
    reasons = not_finite_losses(products.losses)
    for row, parameter in where.items():
        detail = f"the gradient of {parameter} holds NaN or infinity"
        reasons[row] = reasons[row] or BadRecord("gradient_not_finite", detail)
    return failure_column(reasons)


STEP_BREAKS = "after the step the loss on the anchors is not finite; a shorter step_size may help"


def not_finite_losses(losses: Tensor) -> list[BadRecord | None]:
    """For each sample ``None``, or what is wrong with its loss."""
    return [
        None if math.isfinite(loss) else BadRecord("loss_not_finite", f"the model's loss on this sample is {loss}")
        for loss in losses.tolist()
    ]


def failure_column(reasons: list[BadRecord | None]) -> dict[str, Any]:
    """The reasons as a column, where there is any."""
    return {"failure": reasons} if any(reasons) else {}
