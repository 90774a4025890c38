"""How far a utility can be trusted: the sampling error of its curvature sketch."""

from __future__ import annotations

import numpy as np

CERTAIN = 1.96
"""Standard errors within which a difference is called noise (95% of a normal distribution)."""
ROWS = 4096
"""Rows in float64 at a time."""


def curvature_error(phi: np.ndarray, groups: int = 1) -> np.ndarray:
    """``[N]`` standard error of ``||phi_i||^2``, by the jackknife over probes.

    ``||phi_i||^2 = sum over groups of mean_k <g_i, q_gk>^2``, each group's probes independent draws, so leaving one
    probe out and rescaling its group gives, summed over all probes (Efron and Stein, 1981),

        se^2 = sum_g K / (K - 1) * sum_k (phi_igk^2 - mean_k phi_igk^2)^2

    Args:
        phi: ``[N, groups * K]``, group by group, each entry already divided by ``sqrt(K)`` and weighted.
        groups: how many groups have probes of their own.

    Returns:
        Zeros where there is one probe a group: one draw says nothing of its own error. See ``measurable``.
    """
    samples, width = phi.shape
    probes = width // groups
    found = np.empty(samples)
    for start in range(0, samples, ROWS):
        rows = phi[start : start + ROWS]
        squares = np.square(rows, dtype=np.float64).reshape(len(rows), groups, probes)
        spread = squares.var(axis=2).sum(axis=1) * probes
        found[start : start + ROWS] = np.sqrt(spread * probes / max(1, probes - 1))
    return found


def measurable(width: int, groups: int) -> bool:
    """Whether the columns can be told apart into groups of at least two probes."""
    return groups > 0 and width % groups == 0 and width // groups >= 2


def beyond_noise(utility: np.ndarray, error: np.ndarray, ceiling: np.ndarray | None = None) -> np.ndarray:
    """``[N]`` whether a sample is toxic: its utility is below 0 by more than the noise.

    Args:
        utility, error: ``[N]``, nats.
        ceiling: ``[N]`` a bound the utility cannot exceed whatever the probes said: ``eta <g_i, g_V>``, since
            curvature only costs. Where it is below 0 no probe can change the sign.
    """
    toxic = utility + CERTAIN * error < 0
    return toxic if ceiling is None else toxic | (ceiling < 0)
