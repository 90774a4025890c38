"""Which samples of a pass cannot be scored, and why."""

from __future__ import annotations

import math
from typing import Any

from ostlight.errors import BadRecord
from ostlight.influence.gradients.engine import SampleProducts


def failures(found: SampleProducts) -> dict[str, Any]:
    """A ``failure`` column for the samples whose loss or gradient is not finite; nothing where all are."""
    where = found.non_finite()
    reasons: list[BadRecord | None] = [None] * len(found.losses)
    for row, loss in enumerate(found.losses.tolist()):
        if not math.isfinite(loss):
            reasons[row] = BadRecord("loss_not_finite", f"the proxy's loss on this sample is {loss}")
        elif row in where:
            reasons[row] = BadRecord("gradient_not_finite", f"the gradient of {where[row]} holds NaN or infinity")
    return {"failure": reasons} if any(reasons) else {}
