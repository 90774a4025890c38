"""The weights that training changes, taken out of a model and put back, whether it is sharded or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from ostlight.models.module import MultimodalModel


def trained_weights(model: MultimodalModel) -> dict[str, Tensor]:
    """A copy on the CPU, by name. Of a sharded model every rank must ask; only the first gets it, whole."""
    if model.sharded:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found: dict[str, Any] = get_model_state_dict(model, options=options)
        return {name: found[name] for name in model.trained if name in found}
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.trained.items()}


def put_back(model: MultimodalModel, weights: Mapping[str, Tensor]) -> None:
    """What ``trained_weights`` took out; a sharded model reads the first rank's."""
    if isinstance(model.model, FSDPModule):
        model.model.reshard()  # a forward pass without a backward pass leaves the outermost weights gathered
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, dict(weights), options=options)
        return
    with torch.no_grad():
        for name, parameter in model.trained.items():
            parameter.copy_(weights[name])
