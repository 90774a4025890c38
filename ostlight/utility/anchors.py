"""The anchors as batches, and their loss as a whole and by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.model.batch import Batch
from ostlight.model.module import MultimodalModel


@dataclass
class AnchorSet:
    """The anchors, batched for one model.

    Attributes:
        batches: all anchors, each once; grouped by length, so not in the order given.
        names: of the groups, sorted; empty where all anchors are one group.
        weights: ``[1 + groups, anchors]`` float64, anchors in the order of ``batches``: row 0 is the mean over all
            (``L_V``), row k the mean over group ``names[k - 1]``.
    """

    batches: list[Batch]
    names: list[str]
    weights: Tensor

    @classmethod
    def make(
        cls, model: MultimodalModel, anchors: Sequence[Sample], groups: Sequence[str], tokens_per_batch: int
    ) -> AnchorSet:
        """Raises:
        SelectorError: an anchor cannot be encoded; anchors are trusted, so none is set aside in silence.
        """
        try:
            batches = model.batches(anchors, tokens_per_batch)
        except BadRecord as error:
            raise SelectorError(f"an anchor cannot be used: {error}; mend or remove it in the anchors file") from error
        group_of = {id(sample): group for sample, group in zip(anchors, groups, strict=True)}
        in_order = [group_of[id(sample)] for batch in batches for sample in batch.samples]
        names = sorted(set(in_order)) if len(set(in_order)) > 1 else []
        rows = [[1.0] * len(in_order)] + [[float(g == name) for g in in_order] for name in names]
        weights = torch.tensor(rows, dtype=torch.float64, device=model.device)
        return cls(batches, names, weights / weights.sum(1, keepdim=True))

    def losses(self, model: MultimodalModel) -> Tensor:
        """``[1 + groups]`` float64: ``L_V`` and each group's mean loss, in nats, without gradients."""
        with torch.no_grad():
            each = torch.cat([model.losses(batch).double() for batch in self.batches])
        return self.weights @ each
