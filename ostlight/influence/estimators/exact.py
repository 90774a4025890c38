"""The exact utility: take the step, read the anchors, take it back."""

from __future__ import annotations

from typing import Any

import torch

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.failures import STEP_BREAKS
from ostlight.influence.gradients.forward_mode import shiftable
from ostlight.influence.sample_gradient import norm, sample_gradient, train_only
from ostlight.influence.simulated_step import SimulatedStep

UNKNOWN = dict.fromkeys(("score", "loss", "gradient_norm"), float("nan"))
"""Of a sample that failed."""


class Exact:
    """One simulated SGD step on each sample alone (arXiv 2605.07488, One-Step-Train):

        theta_i' = theta - eta grad l_i(theta),    u_i = L_V(theta) - L_V(theta_i')

    in nats: positive where the anchors' loss decreases. Costs a training step on the sample and a pass over all
    anchors. Works for any model and parameters. After every sample the weights are restored bit for bit, from a copy.

    Args:
        step: on weights in float32 or float64. Half precision would swallow it in rounding: pass
            ``step.in_full_precision()``.

    Raises:
        InfluenceError: the weights are in half precision, or the anchors' loss is not finite.
    """

    def __init__(self, step: SimulatedStep) -> None:
        half = [n for n, p in step.parameters.items() if p.dtype not in (torch.float32, torch.float64)]
        if half:
            raise InfluenceError(
                f"exact takes float32 or float64 weights; {half[0]} is {step.parameters[half[0]].dtype}"
            )
        train_only(step.model, step.parameters)
        self.step = step
        with self._full_precision():
            self.base = step.anchors.losses(step.model)
        if not bool(torch.isfinite(self.base).all()):
            raise InfluenceError(
                f"the mean loss on the anchors is {float(self.base[0])}; fix the anchors or take another model"
            )

    def columns(self, batch: Any) -> dict[str, Any]:
        """One value a sample.

        Returns:
            ``score`` (``u_i``), ``loss`` (``l_i``), ``gradient_norm``; where the anchors have groups
            ``utility_by_group`` in the order of ``anchors.names``; ``failure`` where loss or gradient are not finite.
        """
        rows = []
        with self._full_precision():
            for single in self.step.task.singles(batch):
                try:
                    rows.append(self.one(single))
                except BadRecord as error:
                    rows.append({**UNKNOWN, "failure": error})
        return {name: [row.get(name) for row in rows] for name in {k: None for row in rows for k in row}}

    def _full_precision(self) -> torch.autocast:
        """The change of a loss is smaller than what mixed precision rounds off the loss."""
        return torch.autocast(self.step.device.type, enabled=False)

    def one(self, single: Any) -> dict[str, Any]:
        """``columns`` of a batch of one sample.

        Raises:
            BadRecord: the loss, the gradient or the anchors' loss after the step is not finite.
        """
        loss, gradient = sample_gradient(self.step.model, self.step.task, self.step.parameters, single)
        with shiftable(self.step.parameters) as shift:
            shift(self.step.direction(gradient), -self.step.step_size)
            utility = self.base - self.step.anchors.losses(self.step.model)
        if not bool(torch.isfinite(utility).all()):
            raise BadRecord("score_not_finite", STEP_BREAKS)
        columns: dict[str, Any] = {
            "score": float(utility[0]),
            "loss": float(loss),
            "gradient_norm": norm(gradient),
        }
        if self.step.anchors.names:
            columns["utility_by_group"] = utility[1:].tolist()
        return columns
