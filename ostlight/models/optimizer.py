"""AdamW and its learning rates: a linear rise, then a cosine or a constant; some parts at rates of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ostlight.config.schema import Training
from ostlight.errors import ConfigError, OstlightError
from ostlight.models.memory import out_of_memory
from ostlight.models.parts import part_of_parameters


def adamw(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    """The optimizer of a Hugging Face model's training.

    Raises:
        ConfigError: as ``parameter_groups``.
    """
    groups: Any = parameter_groups(model, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def schedule(settings: Training, total_steps: int) -> Callable[[int], float]:
    """What the rates are multiplied by at a step, counted from 0."""
    rise = max(1, round(settings.warmup * total_steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total_steps - rise)))

    return factor


def parameter_groups(model: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """What is trained; in groups with rates of their own where the settings give a part of the model another one.

    Raises:
        ConfigError: such a part is not there, or frozen.
    """
    rates = {"vision": settings.lr_vision, "projector": settings.lr_projector}
    rates = {part: rate for part, rate in rates.items() if rate is not None}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not rates:
        return [{"params": list(trained.values())}]
    part_of = part_of_parameters(model)
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in ("", *rates)}
    for name, parameter in trained.items():
        part = part_of[name]
        groups[part if part in rates else ""].append(parameter)
    for part in rates:
        if not groups[part]:
            raise ConfigError([f"training.lr_{part}: nothing of the {part} is trained; leave it out"])
    rates[""] = settings.lr
    return [{"params": groups[part], "lr": rates[part]} for part in groups if groups[part]]


def take_step(optimizer: Any, trained: Mapping[str, nn.Parameter]) -> None:
    """One step of the optimizer.

    Raises:
        OstlightError: memory runs out for AdamW's two averages, which smaller batches would not help.
    """
    try:
        optimizer.step()
    except Exception as error:
        if not out_of_memory(error):
            raise
        needed = 2 * sum(p.nbytes for p in trained.values()) / 2**30
        raise OstlightError(
            f"out of memory in the optimizer, whose averages take {needed:.1f} GiB beside weights and gradients: "
            "train adapters (target.lora), shard the target (compute.strategy=fsdp with more compute.devices), or "
            "take a smaller model; `ostlight plan` shows what fits"
        ) from error
