"""What a set of samples does to the anchors' loss, from each sample's slope and curvature sketch alone.

Notation, for a pool of N samples and K curvature probes ``q_k`` with ``E[q q'] = H``:

    f_i   = <g_i, g_V>                                  slope: first-order gain of a step along i, per unit of step
    phi_i = (<g_i, q_1>, ..., <g_i, q_K>) / sqrt(K)     so that E<phi_i, phi_j> = g_i' H g_j

neither with a step size inside: the utility of sample i alone is ``u_i = eta f_i - eta^2 / 2 ||phi_i||^2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 1 << 16
"""Rows converted to float64 together; keeps the memory beside ``phi`` small."""


def plain_value(f: np.ndarray, phi: np.ndarray, rows: np.ndarray, c: float) -> float:
    """``F(S)`` in nats: the anchors' gain from one step along all of S, a displacement of ``c`` per sample.

    With ``d = -c sum_S g_i`` to second order ``L_V(theta) - L_V(theta + d) = -<d, g_V> - d' H d / 2``, so

        F(S) = c sum_S f_i - c^2 / 2 || sum_S phi_i ||^2

    Args:
        f: ``[N]`` slopes.
        phi: ``[N, K]`` curvature sketches.
        rows: indices of S, each once.
        c: displacement per sample; ``e / |S|`` for a displacement of ``e`` along the set's mean gradient.
    """
    total = phi[rows].sum(0, dtype=np.float64)
    return float(c * f[rows].sum(dtype=np.float64) - c**2 / 2 * total @ total)


def minibatch_value(f: np.ndarray, phi: np.ndarray, rows: np.ndarray, eta: float, batch_size: float) -> float:
    """``J(S)``: mean gain of one SGD step on a random batch from S, divided by ``eta``.

    A batch of B samples drawn from S with replacement steps by ``eta`` along its mean gradient. The mean slope is
    ``mean f``; the squared length of a mean of B independent draws has expectation
    ``(1 - 1/B) ||mean phi||^2 + (1/B) mean ||phi||^2``. Hence

        J(S) = mean f - eta / 2 [ (1 - 1/B) ||mean phi||^2 + (1/B) mean ||phi||^2 ]

    where the second term is redundancy and the third is noise. B = 1 ranks sample by sample (``u_i / eta``); B without
    bound is the plain form divided by its displacement ``e = eta``.

    Args:
        f: ``[N]`` slopes.
        phi: ``[N, K]`` curvature sketches.
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
    """Both forms as one concave function of weights ``w`` in [0, 1], the set's indicator or its relaxation.

        V(w) = (1/m) sum_i w_i a_i - (b/2) || (1/m) sum_i w_i phi_i ||^2

    ``m`` is fixed: the number of samples the budget buys. For a count budget V is exactly F or J of the set. For a
    token budget the set's size is free and V is the sum form with a displacement of ``1/m`` of the whole per sample.

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
    def plain(cls, f: np.ndarray, phi: np.ndarray, *, displacement: float, size: float) -> SetObjective:
        """``V = F`` in nats with ``c = displacement / size``.

        Raises:
            ValueError: wrong shapes, values that are not finite, or a displacement that is not above 0.
        """
        f, phi = checked(f, phi)
        _refuse_unless(displacement > 0 and np.isfinite(displacement), "displacement", displacement, "above 0")
        _refuse_unless(size >= 1, "size", size, "at least 1")
        return cls(displacement * f, phi, squared_norms(phi), displacement**2, size)

    @classmethod
    def minibatch(cls, f: np.ndarray, phi: np.ndarray, *, eta: float, batch_size: float, size: float) -> SetObjective:
        """``V = J``: its noise term is linear in the weights and joins the gains.

        Raises:
            ValueError: wrong shapes, values that are not finite, ``eta`` not above 0 or ``batch_size`` below 1.
        """
        f, phi = checked(f, phi)
        _refuse_unless(eta > 0 and np.isfinite(eta), "eta", eta, "above 0")
        _refuse_unless(batch_size >= 1, "batch_size", batch_size, "at least 1")
        _refuse_unless(size >= 1, "size", size, "at least 1")
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

    def slopes(self, total: np.ndarray) -> np.ndarray:
        """``[N]`` float64, ``m dV/dw_i = a_i - (b/m) <phi_i, total>`` where the weights give ``total``."""
        return np.asarray(self.gains - dots(self.phi, total * (self.redundancy / self.size)))

    @property
    def own(self) -> np.ndarray:
        """``[N]``: what a sample's own curvature takes off ``slopes`` when it joins, ``b/(2m) ||phi_i||^2``."""
        return np.asarray(self.squares * (self.redundancy / (2 * self.size)))

    def of(self, rows: np.ndarray) -> SetObjective:
        """The same objective over some of the samples, numbered from 0 in the order given."""
        return SetObjective(self.gains[rows], self.phi[rows], self.squares[rows], self.redundancy, self.size)


def dots(phi: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """``[N]`` float64, ``<phi_i, vector>``; a row's result does not depend on its place (a BLAS product's may)."""
    return np.asarray(np.einsum("nk,k->n", phi, vector.astype(phi.dtype)), dtype=np.float64)


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
    bad = np.flatnonzero(~np.isfinite(f))
    if not len(bad):
        for start in range(0, len(phi), ROWS_AT_ONCE):
            bad = start + np.flatnonzero(~np.isfinite(phi[start : start + ROWS_AT_ONCE]).all(1))
            if len(bad):
                break
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"row {i} is not finite (f={f[i]}, phi={phi[i].tolist()[:4]}...); set such samples aside before selecting"
        )
    return f, phi


def _refuse_unless(holds: bool, name: str, got: float, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}; got {got}")
