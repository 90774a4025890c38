"""What all estimators share that take each sample's gradient against a few fixed vectors and drop it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ostlight.influence.failures import failures
from ostlight.influence.gradient_vectors import Directions, VectorPlan, VectorSettings, make_vectors, mean_gradient_norm
from ostlight.influence.gradients.engine import GradientDots, SampleProducts
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.simulated_step import SimulatedStep

log = logging.getLogger(__name__)


class GradientProducts(ABC):
    """Utilities of a whole batch from one forward and one backward pass.

    Args:
        step: half-precision weights are fine here. ``<P g_i, v> = <g_i, P v>`` for a symmetric ``P``, so the fixed
            vectors carry it.
        probes: K curvature probes for each anchor group.
        directions: vectors common to all groups, and how many.
        seed: of the probes.
        vectors: where the fixed vectors are stored; their size is logged before they are made.

    Attributes:
        random: directions whose products with each sample's gradient are taken beside; ``None``, as at first, for none.

    Raises:
        InfluenceError: the fixed vectors do not fit where they are to be stored.
        InfluenceError: a layer the gradient engine does not support, or too few anchors for the probes.
    """

    def __init__(
        self,
        step: SimulatedStep,
        probes: int,
        directions: tuple[Directions, int] | None,
        seed: int,
        vectors: VectorSettings,
    ) -> None:
        train_only(step.model, step.parameters)
        self.step, self.sizes, self.names = step, step.anchors.sizes, step.anchors.names
        further, count = directions or (None, 0)
        self.plan = VectorPlan(step.parameters, self.sizes, probes, vectors.storage, step.device, count)
        log.info(self.plan.summary())
        self.plan.refuse_if_too_large()
        self.vectors = make_vectors(step, self.plan, seed, vectors, further)
        self.anchor_norm = mean_gradient_norm(self.vectors, self.sizes, probes)
        self.random: RandomDirections | None = None
        self.engine, self.rows = GradientDots(step.model, dict(step.parameters)), RowMap(step.model)

    def close(self) -> None:
        """This rank looks up no more vectors; needed where they are split over ranks."""
        self.vectors.leave()

    def verify(self, batch: Any) -> float:
        """Compares the engine with plain autograd on a few samples; the largest relative deviation.

        Raises:
            InfluenceError: it is larger than rounding explains; names the parameter.
        """
        return self.engine.verify(lambda: self.step.losses(batch), self.rows.of_batch(self.step.task, batch))

    def columns(self, batch: Any) -> dict[str, Any]:
        """One value a sample.

        Returns:
            ``score`` (``u_i``), ``loss``, ``gradient_norm``, ``alignment`` (``<g_i, g_V>``), ``step_size``,
            ``cosine`` of ``g_i`` with ``g_V``; with curvature ``phi``, the curvature coordinates by which sets can be
            selected later; with groups ``utility_by_group`` in the order of ``names``; ``random_products`` where
            ``random`` is set; ``failure`` where loss or gradient are not finite.
        """
        rows = self.rows.of_batch(self.step.task, batch)
        products = self.engine.products(
            lambda: self.step.losses(batch), rows, self.vectors, squared_norms=True, random=self.random
        )
        norms, utilities = products.squared_norms.sqrt(), self.utilities(products.dots)
        lengths = (norms * self.anchor_norm).clamp_min(torch.finfo(torch.float64).tiny)
        columns: dict[str, Any] = {
            "score": utilities["score"],
            "loss": products.losses.double(),
            "gradient_norm": norms,
            "alignment": utilities["alignment"],
            "step_size": [self.step.step_size] * len(norms),
            "cosine": utilities["alignment"] / lengths,
        }
        if products.random_products is not None:
            columns["random_products"] = products.random_products
        return columns | utilities | failures(products)

    def products(self, batch: Any) -> SampleProducts:
        """Inner products of each sample's gradient with the fixed vectors."""
        rows = self.rows.of_batch(self.step.task, batch)
        return self.engine.products(lambda: self.step.losses(batch), rows, self.vectors)

    @abstractmethod
    def utilities(self, dots: Tensor) -> dict[str, Tensor]:
        """``score`` and ``alignment`` ``[N]``, and what else follows from the inner products ``[N, M]``."""
