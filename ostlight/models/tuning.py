"""Prepares a target for fine-tuning: adapters and gradient checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ostlight.config.schema import Target
from ostlight.errors import ConfigError
from ostlight.models.adapters import quiet_peft
from ostlight.models.parts import freeze


def prepared(model: Any, settings: Target) -> Any:
    """The model with the adapters, frozen parts and gradient checkpointing of ``settings``.

    Raises:
        ConfigError: no module matches ``lora.modules``; the model has no block that can be checkpointed, or none of a
            part that is to be frozen.
    """
    if settings.gradient_checkpointing:
        layers = blocks(model)
        if not layers:
            name = type(model).__name__
            raise ConfigError([f"target.gradient_checkpointing: {name} has no block that can be checkpointed"])
        for layer in layers:
            # transformers' own switch needs train mode, which would turn dropout on.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if settings.lora is None:
        freeze(model, settings.freeze)
        return model
    lora = settings.lora
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.modules)
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(0)  # the same initial adapters on every rank and after a resume
        try:
            adapted = get_peft_model(model, config).eval()
        except ValueError as error:
            raise ConfigError([f"target.lora.modules={lora.modules!r}: {' '.join(str(error).split())}"]) from error
    freeze(adapted, settings.freeze)
    return adapted


def blocks(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The transformer blocks of the language model and of the vision tower."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def blocks_of_text(model: Any) -> list[GradientCheckpointingLayer]:
    """The blocks that every batch runs through: those of the language model without cross-attention to images."""
    decoder: nn.Module = model.get_decoder()
    return [block for block in blocks(decoder) if "CrossAttention" not in type(block).__name__]
