"""First order from two forward passes of a model whose weights are sharded over ranks (FSDP2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ostlight.errors import InfluenceError
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.gradients.forward_mode import norm_of
from ostlight.influence.simulated_step import SimulatedStep

log = logging.getLogger(__name__)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class ShardedFiniteDifference(FiniteDifference):
    """As ``FiniteDifference``; each rank holds its part of the weights, and of the anchors' mean gradient.

    A pass gathers the weights of a block at a time, so ranks make as many passes: each call is one of all ranks, with
    a batch of its own for each, and a rank without any more calls ``close``.

    Args:
        step: of plain SGD, on the same anchors on all ranks.
        calibration: the same on all ranks.

    Raises:
        InfluenceError: as ``FiniteDifference``; a preconditioner; an anchor without a finite loss; weights that ask for
            no gradient.
    """

    def __init__(self, step: SimulatedStep, calibration: Sequence[Any]) -> None:
        if step.preconditioner is not None:
            raise InfluenceError("the weights are sharded over ranks: only plain SGD is simulated on them (step=sgd)")
        super().__init__(step, calibration)

    def close(self) -> None:
        """Takes part in the passes of the other ranks until all have called this."""
        while self._count(0):
            super().columns(self._calibration)

    def columns(self, batch: Any) -> dict[str, Any]:
        self._count(1)
        return super().columns(batch)

    def _count(self, own: int) -> int:
        scoring = torch.tensor([own], device=self.step.device)
        dist.all_reduce(scoring)
        return int(scoring)

    def _losses(self, batch: Any) -> Tensor:
        self._reshard()
        losses = self.step.losses(batch)
        if not torch.is_grad_enabled():
            self._reshard()
        return losses

    def _reshard(self) -> None:
        # What a forward pass leaves gathered, the outermost weights, would not see that its parts were shifted.
        for module in self.step.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @property
    def _one_product_of(self) -> None:
        return None

    def _own_parameters(self) -> dict[str, Any]:
        return {name: _own(parameter.detach()) for name, parameter in self.step.parameters.items()}

    def _norm(self, vectors: Mapping[str, Tensor]) -> float:
        squared = torch.tensor([norm_of(vectors) ** 2], dtype=torch.float64, device=self.step.device)
        dist.all_reduce(squared)
        return float(squared) ** 0.5

    def _agreed(self, values: tuple[float, float]) -> tuple[float, float]:
        first = [values]
        dist.broadcast_object_list(first, src=0)
        return first[0]

    def _mean_gradient(self) -> dict[str, Tensor]:
        """This rank's part. All ranks run all anchors, so their mean over ranks is the gradient itself."""
        parameters, anchors = self.step.parameters, self.step.anchors
        if frozen := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
            raise InfluenceError(f"{frozen[0]} asks for no gradient; set requires_grad before the model is sharded")
        before = {name: parameter.grad for name, parameter in self.step.model.named_parameters()}
        self.step.model.zero_grad(set_to_none=True)
        count = sum(map(len, anchors.indices))
        try:
            with torch.enable_grad():
                for indices, batch in zip(anchors.indices, anchors.batches, strict=True):
                    losses = self._losses(batch)
                    for index, loss in zip(indices, losses.tolist(), strict=True):
                        if not abs(loss) < float("inf"):
                            name = anchors.name_of(index)
                            raise InfluenceError(f"{name} has the loss {loss}; fix it or leave it out")
                    (losses.sum() / count).backward()
            found = {name: parameter.grad for name, parameter in parameters.items()}
            own = {name: _own(torch.zeros_like(parameters[name]) if g is None else g) for name, g in found.items()}
            return {name: gradient.detach().clone() for name, gradient in own.items()}
        finally:
            for name, parameter in self.step.model.named_parameters():
                parameter.grad = before[name]


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
