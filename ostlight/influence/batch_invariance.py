"""Whether the proxy's loss of a sample is that sample's own: everything here is built on it."""

from __future__ import annotations

import torch

from ostlight.errors import SelectorError
from ostlight.influence.anchors import AnchorSet
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel

ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest change of a loss, over its size (at least 1 nat), that rounding makes; norms round to fp32 even in fp64."""


def refuse_mixing(model: MultimodalModel, anchors: AnchorSet) -> float:
    """Compares the losses of the two shortest and two longest anchors alone and beside each other.

    Returns:
        the largest relative change found.

    Raises:
        SelectorError: a loss depends on what else is in the batch; names the anchor and both losses.
    """
    batch = _unequal(anchors)
    with torch.no_grad():
        together = model.losses(batch).double()
        alone = torch.cat([model.losses(single).double() for single in batch.singles()])
    changes = (together - alone).abs() / alone.abs().clamp_min(1.0)
    allowed = ALLOWED[next(model.parameters()).dtype]
    worst = int(changes.argmax())
    if float(changes[worst]) > allowed:
        raise SelectorError(
            f"the proxy's loss is not per sample: anchor {batch.samples[worst].id!r} has the loss "
            f"{float(alone[worst]):.6g} alone and {float(together[worst]):.6g} beside {len(batch) - 1} others, so its "
            "logits mix the samples of a batch (batch normalisation, experts with a capacity, a missing attention "
            "mask); take another proxy"
        )
    return float(changes[worst])


def _unequal(anchors: AnchorSet) -> Batch:
    """Batches run from short to long: the first and last rows of all are the most unlike in length."""
    singles = [single for batch in anchors.batches for single in batch.singles()]
    return Batch.together(singles if len(singles) <= 4 else singles[:2] + singles[-2:])
