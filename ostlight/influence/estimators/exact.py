"""The utility by its definition: take the step, read the anchors, take it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostlight.errors import BadRecord, SelectorError
from ostlight.influence.sample_gradient import norm, sample_gradient, train_only
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch


class Exact:
    """One simulated SGD step on each sample alone (arXiv 2605.07488, One-Step-Train):

        theta_i' = theta - eta grad l_i(theta),    u_i = L_V(theta) - L_V(theta_i')

    in nats; positive helps, negative is toxic. Costs a training step on the sample and a pass over all anchors. Works
    for any model and scope. After every sample the weights are put back bit for bit, from a copy.

    Args:
        step: on weights in float32 or float64. Half precision would swallow it in rounding: pass
            ``step.in_full_precision()``.

    Raises:
        ValueError: the weights are in half precision.
        SelectorError: the anchors' loss is no finite number.
    """

    def __init__(self, step: Step) -> None:
        parameters = step.parameters
        half = [n for n, p in parameters.items() if p.dtype not in (torch.float32, torch.float64)]
        if half:
            raise ValueError(f"exact takes float32 or float64 weights; {half[0]} is {parameters[half[0]].dtype}")
        train_only(step.model, parameters)
        self.step, self.anchors, self.parameters = step, step.anchors, list(parameters.values())
        self._kept = [p.detach().clone() for p in self.parameters]
        with self._unrounded():
            self.base = self.anchors.losses(step.model)
        if not bool(torch.isfinite(self.base).all()):
            raise SelectorError(
                f"the proxy's mean loss on the anchors is {float(self.base[0])}; mend the anchors or take another proxy"
            )

    def columns(self, batch: Batch) -> dict[str, Any]:
        """Utilities and what came along, one value a sample.

        Returns:
            ``score`` (``u_i``), ``loss`` (``l_i``), ``gradient_norm``; where the anchors have groups
            ``utility_by_group`` in the order of ``anchors.names``; ``failure`` where loss or gradient are not finite.
        """
        with self._unrounded():
            rows = [self._one(single) for single in batch.singles()]
        return {name: [row.get(name) for row in rows] for name in {k: None for row in rows for k in row}}

    def _unrounded(self) -> torch.autocast:
        """The change of a loss is smaller than what mixed precision rounds off the loss."""
        return torch.autocast(self.step.model.device.type, enabled=False)

    def _one(self, single: Batch) -> dict[str, Any]:
        try:
            return self.one(single)
        except BadRecord as error:
            return {"score": float("nan"), "failure": error}

    def one(self, single: Batch) -> dict[str, Any]:
        """A batch of one sample.

        Raises:
            BadRecord: the loss or the gradient is not finite.
        """
        loss, gradient = sample_gradient(self.step.model, self.parameters, single)
        shaped = self.step.shaped(dict(zip(self.step.parameters, gradient, strict=True)))
        utility = self.base - self._after(list(shaped.values()))
        columns: dict[str, Any] = {
            "score": float(utility[0]),
            "loss": float(loss),
            "gradient_norm": norm(gradient),
        }
        if self.anchors.names:
            columns["utility_by_group"] = utility[1:].tolist()
        return columns

    def _after(self, shaped: list[Tensor]) -> Tensor:
        try:
            with torch.no_grad():
                for parameter, g in zip(self.parameters, shaped, strict=True):
                    parameter.sub_(g, alpha=self.step.eta)
            return self.anchors.losses(self.step.model)
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self.parameters, self._kept, strict=True):
                    parameter.copy_(kept)
