"""Near-duplicates: samples with nearly the same gradient, found in the stored gradient sketches alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ostlight.reporting.score_columns import ScoreColumns

MAX_DISTANCE = 0.03
"""Distance of two sketches' directions below which they are near-duplicates (a cosine above 0.99955)."""
MAX_LENGTH_DIFFERENCE = 0.05
"""Largest relative difference of two near-duplicates' gradient and sketch norms."""
AXES = 12
"""Principal axes that neighbours are searched in."""
NEIGHBOURS = 12
"""Neighbours looked at for each sample; larger groups are connected through them."""
FEWEST_COLUMNS = 8
"""Sketch columns below which a direction says too little."""


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of near-duplicates, the largest first.

    Attributes:
        group_of: ``[N]`` group of each sample, -1 for a sample without near-duplicates.
        sizes: ``[groups]`` samples in each.
    """

    group_of: np.ndarray
    sizes: np.ndarray

    def members(self, group: int) -> np.ndarray:
        """Rows of one group's samples."""
        return np.flatnonzero(self.group_of == group)


def find_near_duplicates(scores: ScoreColumns) -> DuplicateGroups | None:
    """Groups samples whose gradients point the same way and are equally long.

    The direction of ``phi`` is that of the sample's gradient in the metric of the anchors' curvature: two samples that
    agree in all its columns teach the same, whether or not their texts and images match byte for byte. Candidates come
    from a tree over the lengths and the first principal axes of the directions; a projection shortens distances, so it
    loses no near pair, and every candidate is measured in all columns. Time grows as ``N log N``.

    Returns:
        ``None`` where the scores hold no sketch, or one with fewer than ``FEWEST_COLUMNS``.
    """
    phi = scores.phi
    if phi is None or phi.shape[1] < FEWEST_COLUMNS:
        return None
    norms = np.linalg.norm(phi, axis=1)
    usable = np.flatnonzero(norms > 0)
    if len(usable) < 2:
        return DuplicateGroups(np.full(len(scores), -1), np.zeros(0, np.int64))
    directions = phi[usable] / norms[usable, None]
    lengths = [norms[usable]] + [scores.extra[n][usable] for n in ("gradient_norm",) if n in scores.extra]
    points = _search_points(directions, lengths)
    first_copy = _first_copies(points, directions, lengths)
    distinct = np.flatnonzero(first_copy == np.arange(len(first_copy)))
    pairs = _near_pairs(points[distinct], directions, lengths, distinct)
    links = np.concatenate([pairs, np.stack([np.arange(len(first_copy)), first_copy])], axis=1)
    graph = coo_array((np.ones(links.shape[1], bool), links), shape=(len(usable), len(usable)))
    component = connected_components(graph, directed=False)[1]
    return _numbered_by_size(component, usable, len(scores))


def _first_copies(points: np.ndarray, directions: np.ndarray, lengths: list[np.ndarray]) -> np.ndarray:
    """For each row the first row that equals it but for rounding: a thousand copies then cost one search, not a
    million pairs."""
    rounded = np.round(points / (MAX_DISTANCE / 10)).astype(np.int64)
    first: dict[bytes, int] = {}
    first_copy = np.array([first.setdefault(point.tobytes(), k) for k, point in enumerate(rounded)])
    same = _are_close(directions, lengths, np.arange(len(first_copy)), first_copy)
    return np.where(same, first_copy, np.arange(len(first_copy)))


def _near_pairs(points: np.ndarray, directions: np.ndarray, lengths: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """``[2, P]`` pairs of near-duplicates among ``rows``, whose search points are ``points``."""
    if len(rows) < 2:
        return np.empty((2, 0), np.int64)
    neighbours = min(NEIGHBOURS + 1, len(points))
    _, nearest = KDTree(points, leafsize=30).query(points, k=neighbours, p=np.inf, distance_upper_bound=MAX_DISTANCE)
    left, right = np.repeat(np.arange(len(points)), neighbours), nearest.ravel()
    is_pair = (right < len(points)) & (left < right)
    left, right = rows[left[is_pair]], rows[right[is_pair]]
    close = _are_close(directions, lengths, left, right)
    return np.stack([left[close], right[close]])


def _search_points(directions: np.ndarray, lengths: list[np.ndarray]) -> np.ndarray:
    """``[N, AXES + lengths]`` coordinates in which near-duplicates are at most ``MAX_DISTANCE`` apart along every axis:
    principal axes of the directions, and the logarithm of every length, scaled."""
    scale = MAX_DISTANCE / -np.log1p(-MAX_LENGTH_DIFFERENCE)
    logarithms = [scale * np.log(np.maximum(length, np.finfo(np.float64).tiny)) for length in lengths]
    some = directions[:: max(1, len(directions) // 5000)].astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(some, rowvar=False))  # ascending; which axes only decides how many candidates
    return np.column_stack([directions @ axes[:, -AXES:].astype(directions.dtype), *logarithms])


def _are_close(directions: np.ndarray, lengths: list[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each pair of rows is near in direction and length."""
    close = np.ones(len(left), bool)
    for length in lengths:
        difference = np.abs(length[left] - length[right])
        close &= difference <= MAX_LENGTH_DIFFERENCE * np.maximum(length[left], length[right])
    for start in range(0, len(left), 20_000):
        part = slice(start, start + 20_000)
        close[part] &= np.linalg.norm(directions[left[part]] - directions[right[part]], axis=1) <= MAX_DISTANCE
    return close


def _numbered_by_size(component: np.ndarray, usable: np.ndarray, samples: int) -> DuplicateGroups:
    counts = np.bincount(component)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 1]
    number = np.full(len(counts), -1)
    number[order] = np.arange(len(order))
    group_of = np.full(samples, -1)
    group_of[usable] = number[component]
    return DuplicateGroups(group_of, counts[order])
