"""The step that is simulated on every sample, and where its effect is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.influence.anchors import Anchors
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.task import Task


@dataclass(frozen=True)
class SimulatedStep:
    """``theta - eta P grad l_i(theta)``, read on the anchors.

    Attributes:
        model: in eval mode.
        parameters: what the step changes, by the names of ``model.named_parameters()``.
        anchors: what the loss is read on.
        step_size: ``eta``.
        preconditioner: ``P``; ``None`` for SGD.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    anchors: Anchors
    step_size: float
    preconditioner: Preconditioner | None = None

    @property
    def task(self) -> Task:
        return self.anchors.task

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def losses(self, batch: Any) -> Tensor:
        """``[N]`` losses of a batch, with a graph."""
        return self.task.losses(self.model, batch)

    def preconditioned(self, name: str, gradients: Tensor) -> Tensor:
        """``P g`` of one parameter's gradients ``[..., *shape]``."""
        return gradients if self.preconditioner is None else self.preconditioner.apply(name, gradients)

    def direction(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``P g`` of a whole gradient."""
        return dict(gradient) if self.preconditioner is None else self.preconditioner.direction(gradient)

    def in_full_precision(self) -> SimulatedStep:
        """As it is where all weights are in float32 or wider, else on a copy of the model in float32: adapters in
        float32 on a base in bf16 hold a small step, and the base's rounding loses what it does."""
        if all(p.dtype.itemsize >= 4 for p in self.model.parameters() if p.is_floating_point()):
            return self
        copied = copy.deepcopy(self.model).float()
        named = dict(copied.named_parameters())
        return replace(self, model=copied, parameters={name: named[name] for name in self.parameters})
