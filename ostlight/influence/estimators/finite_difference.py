"""First order from two forward passes: no backward pass, and any layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.failures import failure_column, not_finite_losses
from ostlight.influence.gradient_vectors import IN_MEMORY, VectorPlan, VectorSettings, make_vectors
from ostlight.influence.gradients.forward_mode import directional_derivatives, find_difference_step, norm_of
from ostlight.influence.simulated_step import SimulatedStep

log = logging.getLogger(__name__)

LARGEST_ERROR = 0.05
"""Relative error, by the difference's own estimate, above which it is no derivative."""


class FiniteDifference:
    """``u_i ~ eta <g_i, g_V>`` in nats, as ``SecondOrder`` without probes, by a central difference along ``g_V``.

    Costs two forward passes a sample, on shifted weights that are restored bit for bit, and holds no activations.

    Rounding of a loss counts ``1 / 2h`` times over: on DigitMath's proxy batch, padding and order move a score by 4e-13
    of the column's median in fp64 and 4e-4 in fp32 (other estimators: 3e-13 and 1e-4).

    Args:
        step: on weights in float32 or float64, where the shift is not lost in rounding; its anchors without groups,
            since each would cost two more passes.
        calibration: a batch, on which the difference's step is found and its error measured.

    Attributes:
        relative_error: root mean square error over root mean square derivative, estimated on ``calibration``.

    Raises:
        InfluenceError: anchors in groups.
        InfluenceError: half-precision weights, nothing to calibrate on, or an error above ``LARGEST_ERROR``.
    """

    def __init__(self, step: SimulatedStep, calibration: Sequence[Any], vectors: VectorSettings = IN_MEMORY) -> None:
        if step.anchors.names:
            raise InfluenceError(
                f"finite_difference takes two forward passes for each of the {len(step.anchors.names)} anchor groups, "
                "more than a backward pass for all; set estimator=first_order, or leave the anchors ungrouped"
            )
        if not calibration:
            raise InfluenceError("finite_difference needs a usable sample of the pool to find its step on; give one")
        self.step, self._vectors = step, vectors
        self.parameters = self._own_parameters()
        self._refuse_autocast()
        self.direction = self._mean_gradient()
        batch = self._calibration = step.task.together(calibration)
        found = find_difference_step(
            lambda: self._losses(batch), self.parameters, self.direction, self._one_product_of, self._norm
        )
        self.size, self.relative_error = self._agreed((found.size, found.relative_error))
        summary = f"first order from two forward passes: its own error is about {self.relative_error:.1g} of a product"
        if self.relative_error > LARGEST_ERROR:
            raise InfluenceError(
                f"{summary}, above {LARGEST_ERROR}: set estimator=first_order, or load the model in float64"
            )
        log.info(f"{summary} (root mean square over {step.task.size(batch)} samples)")

    def columns(self, batch: Any) -> dict[str, Any]:
        """Returns ``score``, ``alignment``, ``step_size``, and ``loss``: the mean of both passes, off by the square of
        the step; ``failure`` where a loss is not finite.

        Raises:
            InfluenceError: under autocast, whose rounding would swallow the difference.
        """
        self._refuse_autocast()
        passes: list[Tensor] = []

        def losses() -> Tensor:
            passes.append(self._losses(batch).double())
            return passes[-1]

        alignment = directional_derivatives(losses, self.parameters, self.direction, self.size, self._one_product_of)
        columns = {
            "score": self.step.step_size * alignment,
            "loss": torch.stack(passes).mean(0),
            "alignment": alignment,
            "step_size": [self.step.step_size] * len(alignment),
        }
        return columns | failure_column(not_finite_losses(alignment))

    @property
    def _one_product_of(self) -> nn.Module | None:
        """The model, unless its weights are elsewhere than in its parameters."""
        return self.step.model

    def _own_parameters(self) -> dict[str, Any]:
        """What is shifted."""
        return dict(self.step.parameters)

    def _mean_gradient(self) -> dict[str, Tensor]:
        """``g_V``, of what is shifted."""
        plan = VectorPlan(self.step.parameters, self.step.anchors.sizes, 0, "full", self.step.device)
        log.info(plan.summary())
        made = make_vectors(self.step, plan, 0, self._vectors)
        return {name: made[name][0] for name in self.parameters}

    def _losses(self, batch: Any) -> Tensor:
        return self.step.losses(batch)

    def _norm(self, vectors: Mapping[str, Tensor]) -> float:
        return norm_of(vectors)

    def _agreed(self, values: tuple[float, float]) -> tuple[float, float]:
        """What all ranks go by."""
        return values

    def _refuse_autocast(self) -> None:
        if torch.is_autocast_enabled(self.step.device.type):
            raise InfluenceError(
                "finite_difference under autocast loses the difference in rounding; run in full precision (32-true)"
            )
