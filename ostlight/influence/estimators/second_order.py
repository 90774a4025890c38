"""The utility from inner products of one gradient with a few fixed vectors: first order, and curvature by sketching."""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.gradient_vectors import IN_MEMORY, VectorSettings
from ostlight.influence.gradients.sketched_utility import pooled, sketches
from ostlight.influence.simulated_step import SimulatedStep


class SecondOrder(GradientProducts):
    """Utilities of a whole batch from one forward and one backward pass, in nats:

        u_i ~ eta <g_i, g_V>                                   without probes (first order)
        u_i ~ eta <g_i, g_V> - eta^2 / 2 mean_k <g_i, q_k>^2   with K probes (second order)

    where the probes ``q_k`` sketch the generalized Gauss-Newton matrix of the anchor loss
    (``ostlight.influence.gradients.probes``). First order leaves out curvature and can rank very differently from
    ``Exact`` at the step sizes training really uses.

    Args:
        step, vectors: as for ``GradientProducts``.
        num_probes: K; 0 for first order. With groups, each group gets K probes of its own, and ``phi`` is
            ``[N, K * groups]``.
        seed: of the probes.

    Raises:
        InfluenceError: as ``GradientProducts``.
    """

    def __init__(
        self, step: SimulatedStep, num_probes: int = 0, seed: int = 0, vectors: VectorSettings = IN_MEMORY
    ) -> None:
        self.num_probes = num_probes
        super().__init__(step, num_probes, None, seed, vectors)

    def utilities(self, dots: Tensor) -> dict[str, Tensor]:
        parts = sketches(dots, self.sizes, self.num_probes)
        whole = pooled(parts, self.sizes)
        columns = {"score": whole.second_order(self.step.step_size), "alignment": whole.alignment}
        if self.num_probes:
            columns["phi"] = whole.curvature.float()
        if self.names:
            by_group = [parts[name].second_order(self.step.step_size) for name in self.names]
            columns["utility_by_group"] = torch.stack(by_group, dim=1)
        return columns
