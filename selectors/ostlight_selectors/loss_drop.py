"""Prefers samples whose loss falls when the proxy is trained briefly on the anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ostlight.errors import BadRecord
from ostlight.models.batch import Batch
from ostlight.pipeline import fingerprint
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector, Preference
from ostlight_selectors.reference_loss import ReferenceLoss, in_full_precision, trained_on_anchors

LEARNT = "the proxy had learnt the answer by heart: its loss was 0, of which a rise is no share"


class LossDrop(MetricSelector):
    """The samples whose loss drops most, relative to what it was, after a brief training of the proxy on the anchors.

    ``(l_before - l_after) / l_before`` (arXiv 2605.09404). The mirror of One-Step-Train, which takes a step on the
    sample and measures the anchors' loss: here the steps are on the anchors. Two forward passes a sample, and
    ``epochs`` of training on the anchors once.
    """

    uses_proxy: ClassVar[bool] = True
    needs_anchors: ClassVar[bool] = True
    column: ClassVar[str] = "loss_drop"

    @dataclass
    class Options(ReferenceLoss.Options):
        """Those of ``reference_loss``, with another preference."""

        prefer: Preference = "high"

    def fingerprints(self) -> dict[str, str]:
        return {"code of reference_loss": fingerprint.of_class(ReferenceLoss)}

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("loss_drop")
        # Both losses in the same precision: a drop may be smaller than what half precision rounds.
        self.model = in_full_precision(context.proxy.model)
        self.reference = trained_on_anchors(context, self.options.epochs, self.options.lr)

    def measure(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            before, after = self.model.losses(batch).double(), self.reference.losses(batch).double()
        learnt = before == 0  # by heart: no drop where it stays so
        where_learnt = torch.where(after == 0, 0.0, float("nan"))
        drop = torch.where(learnt, where_learnt, (before - after) / before)
        failures = [BadRecord("loss_is_zero", LEARNT) if one else None for one in (learnt & (after > 0)).tolist()]
        return {"loss_drop": drop, "loss": before, "reference_loss": after, "failure": failures}
