"""Hidden states and logits at the end of each sample, without the logits of the tokens before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ostlight.errors import ModelError


def at_last_token(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Runs the model on a batch, its output layer on the last token of each sample only.

    Args:
        model: any whose output layer takes hidden states as its first argument.
        inputs: of its forward; ``attention_mask [N, T]`` among them says where each sample ends, padded on any side.

    Returns:
        the last layer's hidden states ``[N, D]`` and the logits ``[N, V]`` that follow from them.

    Raises:
        ModelError: the model has no output layer.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output layer; name a language model")
    mask = inputs["attention_mask"]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    caught: list[Tensor] = []

    def narrow(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        hidden: Tensor = given[0]
        caught.append(hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)])
        return (caught[0][:, None],)

    hook = head.register_forward_pre_hook(narrow)
    try:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return caught[0], logits[:, 0]
