"""A share of the budget for every stratum: by tag, by group of anchors, or by cluster of gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ostlight.config.budget import shared_out
from ostlight.progress import phase
from ostlight.selection.set_objective.constraints import Constraints
from ostlight.selection.set_objective.objective import ROWS_AT_ONCE, checked

FITTED_ROWS = 100_000
"""Rows the clusters are fitted on, evenly spaced in order of alignment; all rows are then assigned."""


def stratified_constraints(
    labels: Sequence[str] | np.ndarray,
    total: float,
    costs: np.ndarray | None = None,
    weights: Mapping[str, float] | None = None,
) -> Constraints:
    """``total`` samples (tokens, where ``costs`` are given), shared out in proportion by largest remainders.

    Args:
        labels: ``[N]`` the stratum of each sample.
        total: the budget, at least 1.
        costs: ``[N]`` tokens of each sample.
        weights: what each stratum's share is in proportion to; by default its size. A share is never more than the
            stratum holds: the rest goes to the others.

    Raises:
        ValueError: lengths that do not fit, a budget below 1, or weights of none of the strata.
    """
    names, groups = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    sizes = np.ones(len(groups)) if costs is None else np.asarray(costs, dtype=np.float64)
    if len(sizes) != len(groups):
        raise ValueError(f"{len(groups)} labels need as many costs; got {len(sizes)}")
    if total < 1:
        raise ValueError(f"the budget must be at least 1; got {total}")
    if weights is not None and not any(weights.get(name) for name in names.tolist()):
        raise ValueError(f"no stratum has a weight; the strata are {', '.join(names.tolist())}")
    capacity = dict(zip(names.tolist(), np.bincount(groups, sizes, minlength=len(names)).tolist(), strict=True))
    shares = shared_out(total, capacity, weights)
    budgets = [float(shares[name]) for name in names.tolist()]
    return Constraints.by_group(groups.astype(np.int64), budgets, None if costs is None else sizes)


def gradient_clusters(f: np.ndarray, phi: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """``[N]`` number of each sample's cluster: strata where there are no tags.

    K-means on directions: each row ``(phi_i, f_i)`` scaled to length 1, ``f`` first brought to the root mean square of
    one column of ``phi``, so that it is one more probe. Seeded, and independent of the rows' order up to ties.

    Raises:
        ValueError: values that are not finite, or fewer than 1 or more than N clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    f, phi = checked(f, phi)
    if not 1 <= clusters <= len(f):
        raise ValueError(f"{clusters} clusters of {len(f)} samples; take at least 1 and at most one a sample")
    typical = float(np.sqrt(np.mean([np.square(part, dtype=np.float64).mean() for part in _parts(phi)])))
    weight = typical / max(float(np.sqrt(np.square(f).mean())), np.finfo(float).tiny)
    order = np.lexsort((phi[:, 0], f)) if phi.shape[1] else np.argsort(f, kind="stable")
    spaced = order[np.linspace(0, len(f) - 1, min(len(f), FITTED_ROWS)).astype(np.int64)]
    means = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096)
    with warnings.catch_warnings():
        # Fewer distinct directions than clusters: some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        with phase(f"{clusters:,} clusters of gradients"):
            means.fit(_directions(f[spaced], phi[spaced], weight))
    parts = range(0, len(f), ROWS_AT_ONCE)
    found = [means.predict(_directions(f[k : k + ROWS_AT_ONCE], phi[k : k + ROWS_AT_ONCE], weight)) for k in parts]
    return np.concatenate(found).astype(np.int64)


def _parts(phi: np.ndarray) -> list[np.ndarray]:
    return [phi[k : k + ROWS_AT_ONCE] for k in range(0, len(phi), ROWS_AT_ONCE)] if phi.shape[1] else [np.ones((1, 1))]


def _directions(f: np.ndarray, phi: np.ndarray, weight: float) -> np.ndarray:
    rows = np.column_stack([phi, weight * f]).astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny))
