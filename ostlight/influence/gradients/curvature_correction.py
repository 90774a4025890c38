"""The network's own curvature: how far steps take the logits off a straight line, from measured ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEARNESS = 4.0
"""How quickly one step's deviation stops predicting another's: ``(1 + 4 (1 - cosine))^-2``, near and far
in one (rational quadratic kernel; Rasmussen and Williams 2006, equation 4.19)."""

NOISE = 1.0
"""Of the median step's variance: keeps single steps from dominating."""


@dataclass(frozen=True)
class CurvatureCorrection:
    """How far the logits deviate from a straight line along a step, as known from S measured steps.

    Gaussian-process regression on the coordinates (Rasmussen and Williams 2006, equation 2.25): steps that point the
    same way deviate alike, in proportion to their curvature ``||eta phi||^2``.

    Attributes:
        phi: ``[S, K]`` their coordinates (``ostlight.influence.gradients.responses``).
        weights: ``[S, B]`` of the kernel's values.
        step_size: ``eta``.
    """

    phi: Tensor
    weights: Tensor
    step_size: float

    @classmethod
    def fit(cls, phi: Tensor, deviations: Tensor, step_size: float) -> CurvatureCorrection:
        """From the ``[S, B]`` deviations of the steps; zero everywhere if no step has a length."""
        kernel = cls(phi, deviations, step_size)._kernel(phi)
        noise = NOISE * kernel.diagonal().median() if len(phi) else kernel.new_zeros(())
        if not noise > 0:
            return cls(phi, torch.zeros_like(deviations), step_size)
        eye = torch.eye(len(phi), dtype=kernel.dtype, device=kernel.device)
        return cls(phi, torch.linalg.solve(kernel + noise * eye, deviations), step_size)

    def __call__(self, phi: Tensor) -> Tensor:
        """``[N, B]`` deviations of steps with these ``[N, K]`` coordinates."""
        return self._kernel(phi) @ self.weights

    def _kernel(self, phi: Tensor) -> Tensor:
        tiny = torch.finfo(phi.dtype).tiny
        units, known = (p / p.norm(dim=1, keepdim=True).clamp_min(tiny) for p in (phi, self.phi))
        curvature, known_curvature = (self.step_size**2 * p.square().sum(1) for p in (phi, self.phi))
        kernel: Tensor = torch.outer(curvature, known_curvature) / (1 + NEARNESS * (1 - units @ known.T)) ** 2
        return kernel
