"""What all estimators share that take each sample's gradient against a few fixed vectors and drop it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from ostlight.influence.estimators.failures import failures
from ostlight.influence.gradient_vectors import Directions, Holding, Keeping, make_vectors, slope_norm
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch

log = logging.getLogger(__name__)


class GradientProducts(ABC):
    """Utilities of a whole batch from one forward and one backward pass.

    Args:
        step: half-precision weights are fine here. ``<P g_i, t> = <g_i, P t>`` for a diagonal ``P``, so the fixed
            vectors carry it.
        probes: K curvature probes for each anchor group.
        directions: vectors common to all groups, and how many.
        seed: of the probes.
        keeping: of the fixed vectors; their size is said before they are made.

    Raises:
        SelectorError: the fixed vectors do not fit where they are to be held.
        OstlightError: a layer the gradient engine cannot treat, or too few anchors for the probes.
    """

    def __init__(
        self, step: Step, probes: int, directions: tuple[Directions, int] | None, seed: int, keeping: Keeping
    ) -> None:
        train_only(step.model, step.parameters)
        self.model, self.eta = step.model, step.eta
        self.sizes: dict[Hashable, int] = dict(Counter(step.anchors.groups))
        self.names = step.anchors.names
        further, count = directions or (None, 0)
        self.holding = Holding(step.parameters, self.sizes, probes, keeping.hold, step.model.device, count)
        log.info(self.holding.line())
        self.holding.refuse_if_too_large()
        self.targets = make_vectors(step, self.holding, seed, keeping, further)
        self.slope_norm = slope_norm(self.targets, self.sizes, probes)
        self.engine, self.rows = GradientDots(step.model, dict(step.parameters)), RowMap(step.model.model)

    def leave(self) -> None:
        """This rank is done; needed where the vectors are split over ranks."""
        self.targets.leave()

    def verify(self, batch: Batch) -> float:
        """Compares the engine with plain autograd on a few samples; the largest relative deviation.

        Raises:
            OstlightError: it is larger than rounding explains; names the parameter.
        """
        return self.engine.verify(lambda: self.model.losses(batch), self.rows.of(batch.inputs))

    def columns(self, batch: Batch) -> dict[str, Any]:
        """Utilities and what came along, one value a sample.

        Returns:
            ``score`` (``u_i``), ``loss``, ``gradient_norm``, ``alignment`` (``<g_i, g_V>``), ``step_size``,
            ``cosine`` of ``g_i`` with ``g_V``; with curvature ``phi``, so that sets can be selected later;
            with groups ``utility_by_group`` in the order of ``names``; ``failure`` where loss or gradient are not
            finite.
        """
        found = self.engine.products(
            lambda: self.model.losses(batch), self.rows.of(batch.inputs), self.targets, squared_norms=True
        )
        norms, told = found.squared_norms.sqrt(), self.utilities(found.dots)
        lengths = (norms * self.slope_norm).clamp_min(torch.finfo(torch.float64).tiny)
        columns: dict[str, Any] = {
            "score": told["score"],
            "loss": found.losses.double(),
            "gradient_norm": norms,
            "alignment": told["alignment"],
            "step_size": [self.eta] * len(batch),
            "cosine": told["alignment"] / lengths,
        }
        return columns | told | failures(found)

    @abstractmethod
    def utilities(self, dots: Tensor) -> dict[str, Tensor]:
        """``score`` and ``slope`` ``[N]``, and what else the inner products ``[N, M]`` tell."""
