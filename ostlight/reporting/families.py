"""Near-duplicates: samples the proxy learns the same from, found in the stored gradient sketches alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ostlight.reporting.evidence import Evidence

APART = 0.03
"""Distance of two sketches' directions below which they are near-duplicates (a cosine above 0.99955)."""
ALIKE = 0.05
"""Largest relative difference of two near-duplicates' gradient and sketch norms."""
AXES = 12
"""Principal axes the neighbours are searched in."""
ITERATIONS = 4
NEAREST = 12
"""Neighbours looked at for each sample; members of a family hang together through them."""
FEWEST = 8
"""Sketch columns below which a direction says too little."""


@dataclass(frozen=True)
class Families:
    """Attributes:
    of: ``[N]`` number of each sample's family, -1 for a sample alone; families are numbered from the largest.
    sizes: of each family.
    """

    of: np.ndarray
    sizes: np.ndarray

    def members(self, family: int) -> np.ndarray:
        """Rows of one family."""
        return np.flatnonzero(self.of == family)


def find_families(evidence: Evidence) -> Families | None:
    """Samples whose gradients point the same way and are as long, family by family.

    The direction of ``phi`` is that of the sample's gradient as the anchors' curvature sees it: two samples that agree
    in all its columns teach the same, whether or not their texts and pictures match byte for byte. Candidates come from
    a tree over the lengths and the first principal axes of the directions; a projection shortens distances, so it
    loses no near pair, and every candidate is measured in all columns. Time grows as ``N log N``.

    Returns:
        ``None`` where the scores hold no sketch, or one too narrow to tell samples apart.
    """
    phi = evidence.phi
    if phi is None or phi.shape[1] < FEWEST:
        return None
    norms = np.linalg.norm(phi, axis=1)
    usable = np.flatnonzero(norms > 0)
    if len(usable) < 2:
        return Families(np.full(len(evidence), -1), np.zeros(0, np.int64))
    directions = phi[usable] / norms[usable, None]
    lengths = [norms[usable]] + [evidence.columns[n][usable] for n in ("gradient_norm",) if n in evidence.columns]
    places = _places(directions, lengths)
    leader = _collapsed(places, directions, lengths)
    leaders = np.flatnonzero(leader == np.arange(len(leader)))
    near = _pairs(places[leaders], directions, lengths, leaders)
    links = np.concatenate([near, np.stack([np.arange(len(leader)), leader])], axis=1)
    graph = coo_array((np.ones(links.shape[1], bool), links), shape=(len(usable), len(usable)))
    component = connected_components(graph, directed=False)[1]
    return _numbered(component, usable, len(evidence))


def _collapsed(places: np.ndarray, directions: np.ndarray, lengths: list[np.ndarray]) -> np.ndarray:
    """For each row the first one that is the same but for rounding: a thousand copies then cost one search, not a
    million pairs."""
    cells = np.round(places / (APART / 10)).astype(np.int64)
    first: dict[bytes, int] = {}
    leader = np.array([first.setdefault(cell.tobytes(), k) for k, cell in enumerate(cells)])
    same = _close(directions, lengths, np.arange(len(leader)), leader)
    return np.where(same, leader, np.arange(len(leader)))


def _pairs(places: np.ndarray, directions: np.ndarray, lengths: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """``[2, P]`` those of ``rows``, which lie at ``places``, that are near-duplicates of each other."""
    if len(rows) < 2:
        return np.empty((2, 0), np.int64)
    neighbours = min(NEAREST + 1, len(places))
    _, found = KDTree(places, leafsize=30).query(places, k=neighbours, p=np.inf, distance_upper_bound=APART)
    left, right = np.repeat(np.arange(len(places)), neighbours), found.ravel()
    real = (right < len(places)) & (left < right)
    left, right = rows[left[real]], rows[right[real]]
    close = _close(directions, lengths, left, right)
    return np.stack([left[close], right[close]])


def _places(directions: np.ndarray, lengths: list[np.ndarray]) -> np.ndarray:
    """``[N, AXES + lengths]`` where neighbours are looked for: near-duplicates are at most ``APART`` from each other
    along every axis, and along the logarithm of every length, scaled so that ``ALIKE`` becomes ``APART``."""
    scale = APART / -np.log1p(-ALIKE)
    logarithms = [scale * np.log(np.maximum(length, np.finfo(np.float64).tiny)) for length in lengths]
    return np.column_stack([_projected(directions), *logarithms])


def _projected(directions: np.ndarray) -> np.ndarray:
    """``[N, AXES]`` on about the first principal axes, by subspace iteration over a few thousand rows: which axes only
    decides how many candidates are in vain."""
    some = directions[:: max(1, len(directions) // 5000)].astype(np.float64)
    centred = some - some.mean(axis=0)
    axes = np.random.default_rng(0).standard_normal((directions.shape[1], min(AXES, directions.shape[1])))
    for _ in range(ITERATIONS):
        axes = np.linalg.qr(centred.T @ (centred @ axes))[0]
    return directions @ axes.astype(directions.dtype)


def _close(directions: np.ndarray, lengths: list[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    close = np.ones(len(left), bool)
    for length in lengths:
        close &= np.abs(length[left] - length[right]) <= ALIKE * np.maximum(length[left], length[right])
    for start in range(0, len(left), 20_000):
        part = slice(start, start + 20_000)
        apart = np.linalg.norm(directions[left[part]] - directions[right[part]], axis=1)
        close[part] &= apart <= APART
    return close


def _numbered(component: np.ndarray, usable: np.ndarray, samples: int) -> Families:
    counts = np.bincount(component)
    order = np.lexsort((np.arange(len(counts)), -counts))
    order = order[counts[order] > 1]
    number = np.full(len(counts), -1)
    number[order] = np.arange(len(order))
    of = np.full(samples, -1)
    of[usable] = number[component]
    return Families(of, counts[order])
