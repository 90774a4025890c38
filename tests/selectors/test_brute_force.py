"""Neighbours, k-means, greedy orders and turns of 2,000 samples against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.selection.registry import create
from ostlight_selectors.coincide import gaussian_kernel, greedy_discrepancy
from ostlight_selectors.embed import nearest_neighbours, spherical_clusters
from ostlight_selectors.facility_location import cosine_neighbours, greedy_gains
from ostlight_selectors.icons import votes_and_ranks
from ostlight_selectors.semdedup import largest_cosine_before

N = 2000
COMPARED = 30
"""Samples that greedy takes first, which are compared."""


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(N, 12)))


@pytest.fixture(scope="module")
def cosines(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(float) @ vectors.astype(float).T


def test_neighbours(vectors: np.ndarray, cosines: np.ndarray):
    found, rows = nearest_neighbours(vectors, 10)
    others = cosines.copy()
    np.fill_diagonal(others, -2)
    np.testing.assert_allclose(found, -np.sort(-others, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, rows, axis=1), found, atol=1e-6)
    assert (rows != np.arange(N)[:, None]).all()


def test_k_means_of_separate_blobs_finds_them():
    random = np.random.default_rng(1)
    centres = unit(np.eye(20) + 0.2 * random.normal(size=(20, 20)))
    blob = random.integers(0, 20, N)
    vectors = unit(centres[blob] + 0.03 * random.normal(size=(N, 20)))
    clusters, centroids = spherical_clusters(vectors, 20, seed=1)
    assert len({*zip(blob, clusters, strict=True)}) == 20  # the same partition
    for cluster in range(20):
        mean = vectors[clusters == cluster].mean(0)
        np.testing.assert_allclose(centroids[cluster], mean / np.linalg.norm(mean), atol=1e-5)


def test_k_means_takes_any_seed(vectors: np.ndarray):
    """scikit-learn takes 32 bits of it, a run has 63."""
    for seed in (2**32, 2**63 - 1):
        clusters, _ = spherical_clusters(vectors, 3, seed)
        assert len(clusters) == len(vectors)


def test_k_means_assigns_each_to_the_nearest_centroid(vectors: np.ndarray):
    clusters, centroids = spherical_clusters(vectors, 30, seed=0)
    nearest = [max(range(30), key=lambda k: float(centroids[k] @ v)) for v in vectors]
    assert (clusters == nearest).all()


def test_lazy_greedy_of_facility_location_takes_what_greedy_takes(vectors: np.ndarray):
    neighbours = cosine_neighbours(vectors, 64)
    gains = greedy_gains(neighbours)
    dense, best, taken = neighbours.toarray(), np.zeros(N), []
    for _ in range(COMPARED):
        each = np.maximum(dense - best[:, None], 0).sum(0)
        each[taken] = -1
        row = int(each.argmax())
        assert gains[row] == pytest.approx(each[row], abs=1e-9)
        best = np.maximum(best, dense[:, row])
        taken.append(row)
    assert np.lexsort((np.arange(N), -gains))[:COMPARED].tolist() == taken


def test_greedy_by_maximum_mean_discrepancy_takes_the_best_each_time(vectors: np.ndarray):
    kernel = gaussian_kernel(vectors.astype(float))
    order = greedy_discrepancy(kernel)
    assert sorted(order) == list(range(N))
    to_all = kernel.mean(0)
    for m in range(10):
        sets = np.column_stack([np.tile(order[:m], (N, 1)), np.arange(N)])
        within = kernel[sets[:, :, None], sets[:, None, :]].mean((1, 2))
        discrepancy = kernel.mean() + within - 2 * to_all[sets].mean(1)
        discrepancy[order[:m]] = np.inf
        assert discrepancy[order[m]] == pytest.approx(discrepancy.min(), abs=1e-12)


def test_the_largest_cosine_before_each(vectors: np.ndarray, cosines: np.ndarray):
    expected = np.array([0.0, *(max(0.0, cosines[k, :k].max()) for k in range(1, N))])
    np.testing.assert_allclose(largest_cosine_before(vectors), expected, atol=1e-6)


def test_the_turns_of_the_anchors(scored_by_embeddings, vectors: np.ndarray):
    anchors = unit(np.random.default_rng(2).normal(size=(7, 12)))
    scores = scored_by_embeddings(create("rds"), vectors, anchors)
    rankings = np.argsort(-scores.column("similarity_by_anchor"), axis=0, kind="stable")
    named = [int(row) for in_round in rankings for row in in_round]  # the anchors in turn, round after round
    assert create("rds").select(scores, Budget(count=500)).tolist() == list(dict.fromkeys(named))[:500]


def test_votes():
    influences = np.random.default_rng(3).normal(size=(N, 4))
    votes, _ = votes_and_ranks(influences, 0.2)
    expected = [sum((influences[:, g] > influences[i, g]).sum() < 400 for g in range(4)) for i in range(N)]
    assert votes.tolist() == expected
