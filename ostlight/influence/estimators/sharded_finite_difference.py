"""First order from two forward passes of a model whose weights are sharded over ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ostlight.errors import InfluenceError
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.shared_passes import SharedPasses, gradient_parts, norm_over_ranks, own_part
from ostlight.influence.simulated_step import SimulatedStep

PASSES = 2
"""Of a batch: on weights that are shifted ahead, and back."""


class ShardedFiniteDifference(FiniteDifference):
    """As ``FiniteDifference``; each rank holds its part of the weights, and of the anchors' mean gradient.

    A pass gathers the weights of a block at a time, so ranks make as many passes: each call is one of all ranks, with
    a batch of its own for each, and a rank without any more calls ``close``.

    Args:
        step: on the same anchors on all ranks.
        calibration: the same on all ranks.

    Raises:
        InfluenceError: as ``FiniteDifference``; an anchor without a finite loss; weights that ask for no gradient.
        RankFailedError: from a call, another rank has failed.
    """

    def __init__(self, step: SimulatedStep, calibration: Sequence[Any]) -> None:
        self._passes = SharedPasses.of(step.model)
        super().__init__(step, calibration)
        self._passes.begin()

    def close(self) -> None:
        """Takes part in the passes of the other ranks until all have called this."""
        self._passes.end(lambda: super(ShardedFiniteDifference, self).columns(self._calibration), PASSES)

    def columns(self, batch: Any) -> dict[str, Any]:
        with self._passes.round(PASSES):
            return super().columns(batch)

    def _losses(self, batch: Any) -> Tensor:
        return self._passes.losses(lambda: self.step.losses(batch), self.step.task.size(batch))

    @property
    def _one_product_of(self) -> None:
        return None

    def _own_parameters(self) -> dict[str, Any]:
        return {name: own_part(parameter.detach()) for name, parameter in self.step.parameters.items()}

    def _norm(self, vectors: Mapping[str, Tensor]) -> float:
        return norm_over_ranks(vectors, self.step.device)

    def _agreed(self, values: tuple[float, float]) -> tuple[float, float]:
        first = [values]
        dist.broadcast_object_list(first, src=0)
        return first[0]

    def _mean_gradient(self) -> dict[str, Tensor]:
        """This rank's part."""
        parameters, anchors = self.step.parameters, self.step.anchors
        count = sum(map(len, anchors.indices))

        def shares() -> Iterator[Tensor]:
            for indices, batch in zip(anchors.indices, anchors.batches, strict=True):
                losses = self.step.losses(batch)
                for index, loss in zip(indices, losses.tolist(), strict=True):
                    if not abs(loss) < float("inf"):
                        name = anchors.name_of(index)
                        raise InfluenceError(f"{name} has the loss {loss}; fix it or leave it out")
                yield losses.sum() / count

        parts = gradient_parts(self.step.model, parameters, shares())
        preconditioner = self.step.preconditioner
        return parts if preconditioner is None else preconditioner.direction_of_parts(parts, parameters)
