"""Prefers samples that a model trained briefly on the anchors finds easy."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ostlight.config.schema import Count, Positive
from ostlight.errors import SelectorError
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel
from ostlight.progress import track
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector, Preference

log = logging.getLogger("ostlight.selectors.reference_loss")

BATCH_SIZE = 16
DIVERGED, LEAST_LOSS = 2.0, 0.01
"""Times the anchors' loss before their training, from which it has diverged; unless it is below so many nats."""


class ReferenceLoss(MetricSelector):
    """The samples with the lowest loss after a brief training of the proxy on the anchors.

    The irreducible loss of RHO-LOSS (Mindermann et al. 2022, arXiv 2206.07137, section 3), whose reference model is
    trained on held-out data: low for what the trusted samples teach, high for what contradicts them. One forward pass a
    sample, and ``epochs`` of training on the anchors once.
    """

    uses_proxy: ClassVar[bool] = True
    needs_anchors: ClassVar[bool] = True
    column: ClassVar[str] = "reference_loss"

    @dataclass
    class Options:
        """Attributes:
        prefer: ``low``, ``high`` or ``middle``.
        epochs: passes over the anchors.
        lr: learning rate; ``null`` takes the warm-up's.
        """

        prefer: Preference = "low"
        epochs: Count = 3
        lr: Positive | None = None

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("reference_loss")
        self.reference = trained_on_anchors(context, self.options.epochs, self.options.lr)

    def measure(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            return {"reference_loss": self.reference.losses(batch).double()}


def in_full_precision(model: MultimodalModel) -> MultimodalModel:
    """The model itself where its weights are float32 or wider, else a copy with float32 weights."""
    return model if next(model.parameters()).dtype.itemsize >= 4 else copy.deepcopy(model).float()


def trained_on_anchors(context: ScoringContext, epochs: int, lr: float | None) -> MultimodalModel:
    """A copy of the proxy after ``epochs`` over the anchors, in eval mode: AdamW, batches of 16 in a seeded order.

    Every rank trains the same copy. Its weights are float32 or wider, or small steps would be lost in rounding.

    Raises:
        SelectorError: the anchors' loss is no number after the training, or more than twice what it was.
    """
    model = in_full_precision(context.proxy.model)
    if model is context.proxy.model:
        model = copy.deepcopy(model)
    wanted = list(model.trained.values())
    for parameter in wanted:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(wanted, lr=lr or context.proxy.lr)
    generator = torch.Generator().manual_seed(context.seed)
    before = _mean_loss(model, context)
    with torch.enable_grad():
        for _ in track(range(epochs), "training on the anchors", unit="epochs"):
            order = torch.randperm(len(context.anchors), generator=generator).tolist()
            for start in range(0, len(order), BATCH_SIZE):
                some = [context.anchors[k] for k in order[start : start + BATCH_SIZE]]
                optimizer.zero_grad()
                for batch in model.batches(some, context.proxy.tokens_per_batch):
                    (model.losses(batch).sum() / len(some)).backward()
                torch.nn.utils.clip_grad_norm_(wanted, 1.0)
                optimizer.step()
    optimizer.zero_grad()
    after = _mean_loss(model, context)
    log.info(f"{epochs} passes over {len(context.anchors)} anchors: their loss {before:.3g} before, {after:.3g} after")
    if not after <= max(DIVERGED * before, LEAST_LOSS):
        raise SelectorError(
            f"the training on the anchors diverged (their loss {before:.3g} before, {after:.3g} after); lower lr, now "
            f"{lr or context.proxy.lr}"
        )
    return model.eval()


def _mean_loss(model: MultimodalModel, context: ScoringContext) -> float:
    with torch.no_grad():
        batches = model.batches(context.anchors, context.proxy.tokens_per_batch)
        return float(torch.cat([model.losses(batch).double() for batch in batches]).mean())
