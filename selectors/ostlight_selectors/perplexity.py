"""Prefers samples by the perplexity of the whole conversation, questions included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ostlight.models.batch import Batch
from ostlight.models.losses import IGNORED, per_sample_losses
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector, Preference


class Perplexity(MetricSelector):
    """The samples whose text is of middling (or low, or high) perplexity under the proxy.

    "When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale" (arXiv 2309.04564) found the middle
    best. ``exp`` of the mean cross-entropy over every token that has one before it, image placeholders left out;
    ``loss`` is the same over the answers alone. One forward pass a sample.
    """

    uses_proxy: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True
    column: ClassVar[str] = "perplexity"

    @dataclass
    class Options:
        """Attributes:
        prefer: ``low``, ``high`` or ``middle`` perplexity.
        """

        prefer: Preference = "middle"

    def setup(self, context: ScoringContext) -> None:
        super().setup(context)
        self.image_id = self.model.encoder.image_token_id

    def measure(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            losses = per_sample_losses(self.model.logits(batch), self._every_token(batch))
        return {"perplexity": losses.double().exp()}

    def _every_token(self, batch: Batch) -> Tensor:
        """``[N, T]`` labels; a token behind padding has none before it."""
        ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        wanted = real & torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)
        if self.image_id is not None:
            wanted = wanted & (ids != self.image_id)
        return ids.masked_fill(~wanted, IGNORED)
