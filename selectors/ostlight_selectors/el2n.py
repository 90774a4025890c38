"""Prefers samples by the size of the proxy's prediction errors (EL2N)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ostlight.models.batch import Batch
from ostlight.models.losses import IGNORED
from ostlight.selection.metric_selector import MetricSelector


class EL2N(MetricSelector):
    """The samples with the largest (or smallest, or middling) prediction errors: ``mean_t ||p_t - onehot(y_t)||_2``.

    "Deep Learning on a Data Diet" (arXiv 2107.07075), for language: the mean over the answer tokens, from one proxy
    instead of an average over networks early in training. One forward pass a sample.
    """

    uses_proxy: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True
    column: ClassVar[str] = "el2n"

    def measure(self, batch: Batch) -> dict[str, Any]:
        targets = batch.labels[:, 1:]
        wanted = targets != IGNORED
        with torch.no_grad():
            chosen = self.model.logits(batch)[:, :-1][wanted]
            chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
            errors = chosen.softmax(-1)
            errors[torch.arange(len(errors), device=errors.device), targets[wanted]] -= 1
            lengths = errors.norm(dim=-1).double()
        owner, _ = wanted.nonzero(as_tuple=True)
        totals = lengths.new_zeros(len(batch)).index_add(0, owner, lengths)
        return {"el2n": totals / wanted.sum(1)}
