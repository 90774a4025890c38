"""What a set of samples does to the anchors' loss, from each sample's alignment and curvature coordinates alone.

Notation, for a pool of N samples and K curvature probes ``q_k`` with ``E[q q'] = H``:

    f_i   = <g_i, g_V>                                  alignment: first-order gain of a step along i, per unit of step
    phi_i = (<g_i, q_1>, ..., <g_i, q_K>) / sqrt(K)     so that E<phi_i, phi_j> = g_i' H g_j

neither with a step size inside: the utility of sample i alone is ``u_i = eta f_i - eta^2 / 2 ||phi_i||^2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 1 << 16
"""Rows converted to float64 together; keeps the memory beside ``phi`` small."""


def minibatch_value(f: np.ndarray, phi: np.ndarray, rows: np.ndarray, eta: float, batch_size: float) -> float:
    """``J(S)``: mean gain of one SGD step on a random batch from S, divided by ``eta``.

    A batch of B samples drawn from S with replacement steps by ``eta`` along its mean gradient. The mean alignment is
    ``mean f``; the squared length of a mean of B independent draws has expectation
    ``(1 - 1/B) ||mean phi||^2 + (1/B) mean ||phi||^2``. Hence

        J(S) = mean f - eta / 2 [ (1 - 1/B) ||mean phi||^2 + (1/B) mean ||phi||^2 ]

    where the second term is redundancy and the third is noise. B = 1 ranks sample by sample (``u_i / eta``). B without
    bound is the gain of one step along the set's mean gradient, divided by ``eta``.

    Args:
        f: ``[N]`` alignments.
        phi: ``[N, K]`` curvature coordinates.
        rows: indices of S, at least one.
        eta: step size.
        batch_size: B, at least 1; ``math.inf`` is allowed.
    """
    chosen = phi[rows].astype(np.float64)
    mean = chosen.mean(0)
    noise = np.square(chosen).sum(1).mean()
    return float(f[rows].mean(dtype=np.float64) - eta / 2 * ((1 - 1 / batch_size) * mean @ mean + noise / batch_size))


@dataclass(frozen=True)
class SetObjective:
    """``J`` as a concave function of weights ``w`` in [0, 1], the set's indicator or its relaxation.

        V(w) = (1/m) sum_i w_i a_i - (b/2) || (1/m) sum_i w_i phi_i ||^2

    ``m`` is fixed: the number of samples the budget buys. For a count budget V is exactly J of the set. For a token
    budget the set's size is free and every sample counts as one of ``m``.

    Attributes:
        gains: ``[N]`` float64, ``a_i``.
        phi: ``[N, K]``, float32 or float64.
        squares: ``[N]`` float64, ``||phi_i||^2``.
        redundancy: ``b``, not negative.
        size: ``m``.
    """

    gains: np.ndarray
    phi: np.ndarray
    squares: np.ndarray
    redundancy: float
    size: float

    @classmethod
    def minibatch(cls, f: np.ndarray, phi: np.ndarray, *, eta: float, batch_size: float, size: float) -> SetObjective:
        """``V = J`` (``minibatch_value``): the noise term is linear in the weights and joins the gains.

        Raises:
            ValueError: wrong shapes, values that are not finite, ``eta`` not above 0 or ``batch_size`` below 1.
        """
        f, phi = checked(f, phi)
        if not (eta > 0 and np.isfinite(eta)):
            raise ValueError(f"eta must be above 0; got {eta}")
        for name, value in (("batch_size", batch_size), ("size", size)):
            if not value >= 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        squares = squared_norms(phi)
        return cls(f - eta / (2 * batch_size) * squares, phi, squares, eta * (1 - 1 / batch_size), size)

    def __len__(self) -> int:
        return len(self.gains)

    def value(self, rows: np.ndarray) -> float:
        """V of a set."""
        return self.value_at(float(self.gains[rows].sum()), self.total(rows))

    def value_at(self, gain: float, total: np.ndarray) -> float:
        """V from ``gain = sum w_i a_i`` and ``total = sum w_i phi_i``, ``[K]``."""
        return float(gain / self.size - self.redundancy / 2 * (total @ total) / self.size**2)

    def total(self, rows: np.ndarray) -> np.ndarray:
        """``[K]`` float64, ``sum_S phi_i``."""
        parts = (rows[k : k + ROWS_AT_ONCE] for k in range(0, len(rows), ROWS_AT_ONCE))
        return sum((self.phi[part].sum(0, dtype=np.float64) for part in parts), np.zeros(self.phi.shape[1]))

    def marginal_gains(self, total: np.ndarray) -> np.ndarray:
        """``[N]`` float64, ``m dV/dw_i = a_i - (b/m) <phi_i, total>`` where the weights give ``total``.

        Each inner product is summed by itself: in a BLAS product a row's rounding would depend on its place.
        """
        vector = (total * (self.redundancy / self.size)).astype(self.phi.dtype)
        return np.asarray(self.gains - np.einsum("nk,k->n", self.phi, vector).astype(np.float64))

    @property
    def own(self) -> np.ndarray:
        """``[N]``: what a sample's own curvature takes off its marginal gain when it joins, ``b/(2m) ||phi_i||^2``."""
        return np.asarray(self.squares * (self.redundancy / (2 * self.size)))

    def of(self, rows: np.ndarray) -> SetObjective:
        """The same objective over some of the samples, numbered from 0 in the order given."""
        return SetObjective(self.gains[rows], self.phi[rows], self.squares[rows], self.redundancy, self.size)


def squared_norms(phi: np.ndarray) -> np.ndarray:
    """``[N]`` float64, ``||phi_i||^2``, summed in float64."""
    found = np.empty(len(phi))
    for start in range(0, len(phi), ROWS_AT_ONCE):
        part = phi[start : start + ROWS_AT_ONCE].astype(np.float64)
        found[start : start + ROWS_AT_ONCE] = np.einsum("nk,nk->n", part, part)
    return found


def checked(f: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``f`` as float64 and ``phi`` as a row-major float32 or float64 array, uncopied where they are so already.

    Raises:
        ValueError: wrong shapes, no samples, or a value that is not finite (the message names the first row).
    """
    f = np.asarray(f, dtype=np.float64)
    phi = np.asarray(phi)
    phi = np.ascontiguousarray(phi, dtype=phi.dtype if phi.dtype in (np.float32, np.float64) else np.float64)
    if f.ndim != 1 or phi.ndim != 2 or len(f) != len(phi) or not len(f):
        raise ValueError(f"f must be [N] and phi [N, K] with the same N of at least 1; got {f.shape} and {phi.shape}")
    for start in range(0, len(phi), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        bad = np.flatnonzero(~(np.isfinite(f[part]) & np.isfinite(phi[part]).all(1)))
        if len(bad):
            i = start + int(bad[0])
            raise ValueError(
                f"row {i} is not finite (f={f[i]}, phi={phi[i].tolist()[:4]}...); leave such samples out of the set"
            )
    return f, phi
