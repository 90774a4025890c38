"""The sampling error of a utility that random probes of the curvature cause."""

from __future__ import annotations

import numpy as np

Z_95 = 1.96
"""Standard errors of a normal distribution's 95% interval."""
ROWS = 4096
"""Rows in float64 at a time."""


def curvature_error(phi: np.ndarray, groups: int = 1) -> np.ndarray:
    """``[N]`` standard error of ``||phi_i||^2``, by the jackknife over probes.

    ``||phi_i||^2 = sum over groups of mean_k <g_i, q_gk>^2``, with independent probes in each group. Leaving one
    probe out and rescaling its group gives, summed over all probes (Efron and Stein, 1981),

        se^2 = sum_g K / (K - 1) * sum_k (phi_igk^2 - mean_k phi_igk^2)^2

    Args:
        phi: ``[N, groups * K]``, group by group, each entry already divided by ``sqrt(K)`` and weighted.
        groups: how many groups have probes of their own.

    Returns:
        Zeros where a group has a single probe, from which no error can be estimated; see ``measurable``.
    """
    samples, width = phi.shape
    probes = width // groups
    error = np.empty(samples)
    for start in range(0, samples, ROWS):
        rows = phi[start : start + ROWS]
        squares = np.square(rows, dtype=np.float64).reshape(len(rows), groups, probes)
        spread = squares.var(axis=2).sum(axis=1) * probes
        error[start : start + ROWS] = np.sqrt(spread * probes / max(1, probes - 1))
    return error


def measurable(width: int, groups: int) -> bool:
    """Whether sketches of that many columns hold at least two probes for each group."""
    return groups > 0 and width % groups == 0 and width // groups >= 2


def beyond_noise(utility: np.ndarray, error: np.ndarray, first_order: np.ndarray | None = None) -> np.ndarray:
    """``[N]`` whether a sample is toxic: its utility is below 0 by more than the noise.

    Args:
        utility, error: ``[N]``, nats.
        first_order: ``[N]`` first-order utility, nats. Curvature can only lower it: where it is below 0 no probe can
            change the sign.
    """
    toxic = utility + Z_95 * error < 0
    return toxic if first_order is None else toxic | (first_order < 0)
