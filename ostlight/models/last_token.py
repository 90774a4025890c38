"""Hidden states of a batch, and logits at the end of each sample, without the logits of the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    with _head_on_last_token(model, inputs) as caught, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    return caught[0], logits[:, 0]


def hidden_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """``[N, T, D]`` output of each block of the language model; the last as the output layer sees it.

    Args:
        model, inputs: as for ``at_last_token``.

    Raises:
        ModelError: the model has no output layer, or does not return its hidden states.
    """
    with _head_on_last_token(model, inputs), torch.no_grad():
        states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    if not states:
        raise ModelError(f"{type(model).__name__} does not return its hidden states; name another proxy")
    return list(states[1:])  # the first are the token embeddings


def attention_outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """``[N, T, D]`` output of each block's self-attention, before it is added to the residual stream.

    Args:
        model, inputs: as for ``at_last_token``.

    Raises:
        ModelError: the model has no output layer, or its blocks have no ``self_attn``.
    """
    blocks = list(getattr(model.get_decoder(), "layers", []))
    if not blocks or not all(hasattr(block, "self_attn") for block in blocks):
        raise ModelError(f"{type(model).__name__} has blocks without self_attn; use hidden states, or another proxy")
    caught: list[Tensor] = []

    def catch(_: nn.Module, given: Any, returned: Any) -> None:
        caught.append(returned[0] if isinstance(returned, tuple) else returned)

    hooks = [block.self_attn.register_forward_hook(catch) for block in blocks]
    try:
        with _head_on_last_token(model, inputs), torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return caught


@contextmanager
def _head_on_last_token(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Shows the output layer the last token of each sample alone; yields a list that gets its input, ``[N, D]``."""
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
        yield caught
    finally:
        hook.remove()
