"""First order from two forward passes: no backward pass, no layer that would have to be known."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ostlight.errors import BadRecord, OstlightError, SelectorError
from ostlight.influence.gradient_vectors import IN_MEMORY, Holding, Keeping, make_vectors
from ostlight.influence.gradients.forward_mode import directional_derivatives, find_step
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel

log = logging.getLogger(__name__)

LARGEST_ERROR = 0.05
"""Relative error, by the step's own estimate, above which the difference is no derivative."""


class FiniteDifference:
    """``u_i ~ eta <g_i, g_V>`` in nats, as ``SecondOrder`` without probes, by a central difference along ``g_V``.

    Costs two forward passes a sample, on shifted weights that are put back bit for bit, and holds no activations.

    Rounding of a loss counts ``1 / 2h`` times over: on DigitMath's proxy batch, padding and order move a score by 4e-13
    of the column's median in fp64 and 4e-4 in fp32 (other estimators: 3e-13 and 1e-4).

    Args:
        step: on weights in float32 or float64, where the shift is not lost in rounding; its anchors without groups,
            since each would cost two more passes.
        tried: some samples, one a batch, on which the difference's step is found and its error measured.

    Attributes:
        relative_error: root mean square error over root mean square derivative, estimated on ``tried``; said once.

    Raises:
        SelectorError: anchors in groups.
        OstlightError: half-precision weights, no sample to try on, or an error above ``LARGEST_ERROR``.
    """

    def __init__(self, step: Step, tried: Sequence[Batch], keeping: Keeping = IN_MEMORY) -> None:
        model, anchors = step.model, step.anchors
        if anchors.names:
            raise SelectorError(
                f"finite_difference takes two forward passes for each of the {len(anchors.names)} anchor groups, more "
                "than a backward pass for all; set estimator=first_order, or anchors.group=null"
            )
        if not tried:
            raise OstlightError(
                "finite_difference needs a usable sample of the pool to find its step on; there is none"
            )
        _refuse_autocast(model)
        self.model, self.parameters, self.eta = model, dict(step.parameters), step.eta
        holding = Holding(self.parameters, {anchors.groups[0]: len(anchors.groups)}, 0, "full", model.device)
        log.info(holding.line())
        targets = make_vectors(step, holding, 0, keeping)
        self.direction = {name: targets[name][0] for name in self.parameters}
        batch = _together(tried)
        shift = find_step(lambda: model.losses(batch), self.parameters, self.direction, model)
        self.size, self.relative_error = shift.size, shift.relative_error
        said = f"first order from two forward passes: its own error is about {shift.relative_error:.1g} of a slope"
        if shift.relative_error > LARGEST_ERROR:
            raise OstlightError(
                f"{said}, above {LARGEST_ERROR}: set estimator=first_order, or load the proxy in float64"
            )
        log.info(f"{said} (root mean square over {len(batch)} samples)")

    def columns(self, batch: Batch) -> dict[str, Any]:
        """``score``, ``alignment``, ``step_size``, and ``loss``: the mean of both passes, off by the square of
        the step; ``failure`` where a loss is not finite.

        Raises:
            SelectorError: under autocast, whose rounding would swallow the difference.
        """
        _refuse_autocast(self.model)
        seen: list[Tensor] = []

        def losses() -> Tensor:
            seen.append(self.model.losses(batch).double())
            return seen[-1]

        slope = directional_derivatives(losses, self.parameters, self.direction, self.size, self.model)
        loss = torch.stack(seen).mean(0)
        columns = {"score": self.eta * slope, "loss": loss, "alignment": slope, "step_size": [self.eta] * len(batch)}
        bad = [not finite for finite in slope.isfinite().tolist()]
        if any(bad):
            told = BadRecord("loss_not_finite", "the proxy's loss on this sample is not finite")
            columns["failure"] = [told if b else None for b in bad]
        return columns


def _together(singles: Sequence[Batch]) -> Batch:
    collator = singles[0].collator
    assert collator is not None, "samples come encoded"
    samples, encoded = [s.samples[0] for s in singles], [s.encoded[0] for s in singles]
    return collator.batch(samples, encoded).to(singles[0].labels.device)


def _refuse_autocast(model: MultimodalModel) -> None:
    if torch.is_autocast_enabled(model.device.type):
        raise SelectorError(
            "finite_difference under autocast loses the difference in rounding; set compute.precision=32-true"
        )
