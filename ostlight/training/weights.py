"""Copies the weights that training changes out of a model and back, whether it is sharded or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from ostlight.models.module import MultimodalModel


def trained_weights(model: MultimodalModel) -> dict[str, Tensor]:
    """Returns a copy on the CPU, by name. Every rank of a sharded model must call it; only the first gets weights."""
    if model.sharded:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        full: dict[str, Any] = get_model_state_dict(model, options=options)
        return {name: full[name] for name in model.trained if name in full}
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.trained.items()}


def set_trained_weights(model: MultimodalModel, weights: Mapping[str, Tensor]) -> None:
    """Writes what ``trained_weights`` returned back into the model; a sharded model takes the first rank's."""
    if isinstance(model.model, FSDPModule):
        model.model.reshard()  # a forward pass without a backward pass leaves the outermost weights gathered
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, dict(weights), options=options)
        return
    with torch.no_grad():
        for name, parameter in model.trained.items():
            parameter.copy_(weights[name])
