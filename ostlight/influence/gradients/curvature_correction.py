"""How the logits of the anchors leave the straight way along a step, told from steps that were measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEARNESS = 4.0
"""How quickly what is known of one step's bend stops telling about another's: ``(1 + 4 (1 - cosine))^-2``, near and far
in one (rational quadratic kernel; Rasmussen and Williams 2006, equation 4.19)."""

NOISE = 1.0
"""Of the median step's variance: keeps single steps from ruling."""


@dataclass(frozen=True)
class Bend:
    """How the logits leave the straight way, as known from S steps.

    Gaussian-process regression on the coordinates (Rasmussen and Williams 2006, equation 2.25): steps that point the
    same way bend alike, in proportion to their curvature ``||eta phi||^2``.

    Attributes:
        phi: ``[S, K]`` their coordinates (``ostlight.influence.gradients.responses``).
        weights: ``[S, B]`` of the kernel's values.
        eta: step size.
    """

    phi: Tensor
    weights: Tensor
    eta: float

    @classmethod
    def of(cls, phi: Tensor, bent: Tensor, eta: float) -> Bend:
        """From the ``[S, B]`` bends of the steps; none at all where no step has a length."""
        kernel = cls(phi, bent, eta)._kernel(phi)
        noise = NOISE * kernel.diagonal().median() if len(phi) else kernel.new_zeros(())
        if not noise > 0:
            return cls(phi, torch.zeros_like(bent), eta)
        eye = torch.eye(len(phi), dtype=kernel.dtype, device=kernel.device)
        return cls(phi, torch.linalg.solve(kernel + noise * eye, bent), eta)

    def __call__(self, phi: Tensor) -> Tensor:
        """``[N, B]`` bends of steps with these ``[N, K]`` coordinates."""
        return self._kernel(phi) @ self.weights

    def _kernel(self, phi: Tensor) -> Tensor:
        tiny = torch.finfo(phi.dtype).tiny
        units, known = (p / p.norm(dim=1, keepdim=True).clamp_min(tiny) for p in (phi, self.phi))
        ours, theirs = (self.eta**2 * p.square().sum(1) for p in (phi, self.phi))
        return torch.outer(ours, theirs) / (1 + NEARNESS * (1 - units @ known.T)) ** 2
