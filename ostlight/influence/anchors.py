"""The anchors as batches, and their loss as a whole and by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel


@dataclass
class AnchorSet:
    """The anchors, batched for one model.

    Attributes:
        batches: all anchors, each once, grouped by length.
        indices: for each batch, the place of its rows among the anchors as they were given.
        groups: of each anchor, as they were given.
        names: of the groups, sorted; empty where all anchors are one group.
        weights: ``[1 + groups, anchors]`` float64, columns in the order of ``batches``: row 0 is the mean over all
            (``L_V``), row k the mean over group ``names[k - 1]``.
    """

    batches: list[Batch]
    indices: list[list[int]]
    groups: list[str]
    names: list[str]
    weights: Tensor

    @classmethod
    def make(
        cls, model: MultimodalModel, anchors: Sequence[Sample], groups: Sequence[str], tokens_per_batch: int
    ) -> AnchorSet:
        """Raises:
        SelectorError: an anchor cannot be encoded (anchors are trusted, so none is set aside in silence), or stands
            alone in its group.
        """
        _refuse_lonely(groups)
        try:
            batches = model.batches(anchors, tokens_per_batch)
        except BadRecord as error:
            raise SelectorError(f"an anchor cannot be used: {error}; mend or remove it in the anchors file") from error
        place = {id(sample): k for k, sample in enumerate(anchors)}
        indices = [[place[id(sample)] for sample in batch.samples] for batch in batches]
        in_order = [groups[k] for rows in indices for k in rows]
        names = sorted(set(groups)) if len(set(groups)) > 1 else []
        rows = [[1.0] * len(in_order)] + [[float(g == name) for g in in_order] for name in names]
        weights = torch.tensor(rows, dtype=torch.float64, device=model.device)
        return cls(batches, indices, list(groups), names, weights / weights.sum(1, keepdim=True))

    @property
    def ids(self) -> list[str]:
        """What each anchor is called, as they were given."""
        pairs = zip(self.indices, self.batches, strict=True)
        placed = [(k, s.id) for rows, batch in pairs for k, s in zip(rows, batch.samples, strict=True)]
        return [name for _, name in sorted(placed)]

    def losses(self, model: MultimodalModel) -> Tensor:
        """``[1 + groups]`` float64: ``L_V`` and each group's mean loss, in nats, without gradients."""
        with torch.no_grad():
            each = torch.cat([model.losses(batch).double() for batch in self.batches])
        return self.weights @ each


def _refuse_lonely(groups: Sequence[str]) -> None:
    counts = Counter(groups)
    lonely = sorted(group for group, count in counts.items() if count == 1)
    if lonely and len(counts) > 1:
        raise SelectorError(
            f"anchors.group: one anchor alone is in {', '.join(map(repr, lonely[:10]))}; one sample says too little of "
            "a group, so add anchors or merge the group with another"
        )
