"""The eigenvectors of a weight's two Kronecker factors, and the damped inverses in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ostlight.influence.gradients.factors import Moments
from ostlight.influence.preconditioner import Block


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors ``[D, D]`` (``None`` for a factor that is diagonal) and eigenvalues ``[D]`` of both factors.

    Each factor is divided by its trace, so that eigenvalues add up to 1; all are 0 where the factor is.
    """

    left: Tensor | None
    outputs: Tensor
    right: Tensor | None
    inputs: Tensor

    @classmethod
    def of(cls, factors: Moments) -> Eigenbasis:
        assert factors.outputs is not None, "asked of matrices alone"
        assert factors.inputs is not None, "both sides are added together"
        return cls(*_eigen(factors.outputs), *_eigen(factors.inputs))

    def kfac_inverse(self, damping: float, mean_square_norm: float) -> Tensor:
        """``[D_out, D_in]``, with the factors scaled so that the product of their traces is ``E ||G_i||^2``."""
        outputs, inputs = (damped_inverse(one, damping) for one in (self.outputs, self.inputs))
        return _finite(outputs[:, None] * inputs / mean_square_norm)

    def block(self, inverse: Tensor, shape: torch.Size) -> Block:
        """What multiplies a gradient of this shape: by ``inverse [D_out, D_in]`` in the basis."""
        if self.left is None and self.right is None:
            return Block(inverse.reshape(shape))
        return Block(inverse, self.left, self.right)


def _eigen(factor: Tensor) -> tuple[Tensor | None, Tensor]:
    trace = factor.sum() if factor.ndim == 1 else factor.trace()
    factor = factor / trace if bool(trace > 0) else factor
    if factor.ndim == 1:
        return None, factor
    values, vectors = torch.linalg.eigh(factor)
    return vectors, values.clamp_min(0)


def damped_inverse(eigenvalues: Tensor, damping: float) -> Tensor:
    """The inverses of eigenvalues to each of which a share of their mean is added; zeros where none is known."""
    return _finite(1 / (eigenvalues + damping * eigenvalues.mean()))


def _finite(inverse: Tensor) -> Tensor:
    """The inverse, or zeros where it is not finite: the gradients, or their squares, are zero, and nothing is known of
    the parameter."""
    return inverse if bool(inverse.isfinite().all()) else torch.zeros_like(inverse)
