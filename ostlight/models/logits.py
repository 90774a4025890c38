"""Next-token scores of a Hugging Face model, with stored vision features in the place of its tower."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from ostlight.influence.parameters import unwrapped
from ostlight.models.batch import Batch
from ostlight.models.losses import IGNORED
from ostlight.models.vision.cache import reused


def next_token_logits(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    """``[N, T, V]`` next-token scores of a Hugging Face model; ``options`` of its forward."""
    dtype = next(model.parameters()).dtype
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    kept = batch.features.reused(model, batch.inputs) if batch.features is not None else nullcontext()
    with reused(model, batch.inputs), kept:
        logits: Tensor = model(**inputs, use_cache=False, **options).logits
    return logits


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """``[N, U, V]`` scores, and the ``[N, U]`` tokens they are to predict, ``IGNORED`` where a sample has none there.

    U positions: those at which some sample of the batch has an answer token, where the model can leave out others
    (``logits_to_keep`` of its forward); else all but the last. The output layer is most of a small model's work, and
    its scores the largest tensor of a pass.
    """
    labels = batch.labels[:, 1:]
    positions = (labels != IGNORED).any(0).nonzero()[:, 0]
    if not len(positions) or len(positions) == labels.shape[1] or not _keeps_logits(unwrapped(model)):
        return next_token_logits(model, batch)[:, :-1], labels
    return next_token_logits(model, batch, logits_to_keep=positions), labels[:, positions]


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
