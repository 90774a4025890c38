"""Prefers samples by their loss, the cheapest score that needs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ostlight.models.batch import Batch
from ostlight.selection.metric_selector import MetricSelector, Preference


class Loss(MetricSelector):
    """The samples the proxy finds easiest (or hardest, or middling): mean cross-entropy over the answer tokens.

    The quantity that "small loss" selection ranks by (co-teaching, arXiv 1804.06872); high loss is its opposite, hard
    examples, and the middle leaves out both the known and the hopeless. One forward pass a sample.
    """

    uses_proxy: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True
    column: ClassVar[str] = "loss"

    @dataclass
    class Options:
        """Attributes:
        prefer: ``low``, ``high`` or ``middle`` loss.
        """

        prefer: Preference = "low"

    def measure(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            return {"loss": self.model.losses(batch).double()}
