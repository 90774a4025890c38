"""The same problem with weights in [0, 1]: what no set can exceed, and a set close to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ostlight.selection.set_objective.constraints import Constraints
from ostlight.selection.set_objective.objective import ROWS_AT_ONCE, SetObjective

STEPS = 60
"""Passes over all samples at most."""

TOLERANCE = 1e-4
"""Distance of the relaxed value from its own upper bound, relative to the bound's largest part, that is near enough."""


@dataclass(frozen=True)
class RelaxedSolution:
    """The relaxed problem, solved to a known accuracy.

    Attributes:
        weights: ``[N]`` in [0, 1], within the constraints.
        value: V of the weights.
        bound: no set (or weights) within the constraints has a higher V, up to the rounding of float32 sketches;
            ``bound - value`` is the solver's own error.
        marginal_gains: ``[N]`` of the objective at the weights.
    """

    weights: np.ndarray
    value: float
    bound: float
    marginal_gains: np.ndarray


def solve_relaxation(
    objective: SetObjective, constraints: Constraints, steps: int = STEPS, tolerance: float = TOLERANCE
) -> RelaxedSolution:
    """Maximises V over weights in [0, 1] within the constraints (simplicial decomposition: von Hohenbalken 1977).

    For any weights w with ``s = sum w_i phi_i``, concavity gives for all feasible x

        V(x) <= V(w) + (1/m) sum_i (x_i - w_i) gain_i(w)

    with the marginal gains at w, and the x that maximises the right-hand side is a vertex of the constraints, which
    sorting finds: a bound in one pass. Each step adds that vertex to those found so far and solves the problem
    over their convex hull exactly, which needs only each vertex's gain and its K sums.
    """
    gains: list[float] = []
    totals: list[np.ndarray] = []
    vertices: list[np.ndarray] = []
    shares, bound, scale = np.empty(0), np.inf, 0.0
    total, value, marginal = np.zeros(objective.phi.shape[1]), -np.inf, objective.gains
    for _ in range(steps):
        vertex = constraints.vertex(marginal)
        # Without w itself: ``sum w_i gain_i(w)`` follows from its gain and sums.
        curvature = objective.redundancy / objective.size**2 * float(total @ total)
        bound = min(bound, float(marginal @ vertex) / objective.size + curvature / 2)
        scale = max(scale, abs(bound), abs(float(objective.gains @ vertex)) / objective.size)
        if bound - value <= tolerance * scale:
            break
        rows = np.flatnonzero(vertex)
        gains.append(float(objective.gains[rows] @ vertex[rows]))
        totals.append(_weighted_total(objective, rows, vertex[rows]))
        vertices.append(vertex.astype(np.float32) if not constraints.counted else vertex.astype(bool))
        shares = _best_mixture(
            np.array(gains) / objective.size,
            np.array(totals) / objective.size,
            objective.redundancy,
            np.append(shares, 0.0 if len(shares) else 1.0),
        )
        total = shares @ np.array(totals)
        value = objective.value_at(float(shares @ np.array(gains)), total)
        marginal = objective.marginal_gains(total)
    weights = np.zeros(len(objective))
    for share, vertex in zip(shares, vertices, strict=True):
        if share > 0:
            weights += share * vertex
    return RelaxedSolution(np.clip(weights, 0.0, 1.0), value, bound, marginal)


def round_relaxation(found: RelaxedSolution, constraints: Constraints) -> np.ndarray:
    """A set that fills the budget: whole samples first, then by weight, equal weights by marginal gain, then by row.

    At an optimum whose mixture is minimal only about K + 1 weights are neither 0 nor 1, so little is lost when many
    more samples than probes are selected.
    """
    order = np.lexsort((np.arange(len(found.weights)), -found.marginal_gains / constraints.costs, -found.weights))
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order), 0, -1)
    return constraints.fill(ranks * constraints.costs)


def _weighted_total(objective: SetObjective, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros(objective.phi.shape[1])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        total += weights[start : start + ROWS_AT_ONCE] @ objective.phi[part].astype(np.float64)
    return total


def _best_mixture(gains: np.ndarray, means: np.ndarray, redundancy: float, shares: np.ndarray) -> np.ndarray:
    """Shares (not negative, adding up to 1) that maximise ``shares @ gains - b/2 ||shares @ means||^2``.

    Moves share from the vertex with the lowest derivative to the one with the highest, as far as that raises the value,
    until nothing does.
    """
    curvature = redundancy * means @ means.T
    derivative = gains - curvature @ shares
    scale = max(np.abs(gains).max(), np.abs(curvature).max(), np.finfo(float).tiny)
    for _ in range(200 * len(shares)):
        best = int(derivative.argmax())
        held = np.flatnonzero(shares > 0)
        worst = int(held[derivative[held].argmin()])
        ascent = derivative[best] - derivative[worst]
        if ascent <= 1e-9 * scale:
            break
        second_derivative = curvature[best, best] + curvature[worst, worst] - 2 * curvature[best, worst]
        move = min(shares[worst], ascent / second_derivative) if second_derivative > 0 else shares[worst]
        shares = shares.copy()
        shares[best] += move
        shares[worst] = shares[worst] - move if move < shares[worst] else 0.0
        derivative = derivative - move * (curvature[:, best] - curvature[:, worst])
    return np.asarray(shares / shares.sum())
