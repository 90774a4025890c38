"""COINCIDE against its formulas, written out."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.registry import create
from ostlight_selectors.coincide import allocate, gaussian_kernel, greedy_discrepancy, text_part, transferability

VECTORS = np.random.default_rng(0).normal(size=(50, 6))
OPTIONS = {"clusters": 5}


def unit(vectors):
    half = vectors.astype(np.float16).astype(float)
    return half / np.linalg.norm(half, axis=1, keepdims=True)


def discrepancy(kernel, some):
    return kernel.mean() + kernel[np.ix_(some, some)].mean() - 2 * kernel[:, some].mean()


def test_a_cluster_is_scored_by_transferability_over_density(scored_by_embeddings):
    scores = scored_by_embeddings(create("coincide", OPTIONS), VECTORS)
    clusters, vectors = scores.column("cluster"), unit(VECTORS)
    assert sorted(set(clusters)) == [0, 1, 2, 3, 4]
    for cluster in range(5):
        members = np.flatnonzero(clusters == cluster)
        distances = ((vectors[members, None] - vectors[None, members]) ** 2).sum(2)
        density = np.exp(-distances / 2).mean()
        np.testing.assert_allclose(scores.column("density")[members], density, rtol=1e-5)
        transfer = scores.column("transferability")[members]
        np.testing.assert_allclose(scores.score[members], transfer / density, rtol=1e-5)
        assert sorted(scores.column("place_in_cluster")[members]) == list(range(len(members)))


def test_transferability_is_the_mean_cosine_with_other_concepts():
    centroids = unit(np.array([[1.0, 0, 0], [0.99, 0.1, 0], [0, 1, 0], [0.6, 0, 0.8]]))
    cosines = centroids @ centroids.T
    expected = [np.mean([c for c in row if c <= 0.9]) for row in cosines]
    np.testing.assert_allclose(transferability(centroids), expected)
    assert transferability(centroids[:1]).tolist() == [0]
    longer = centroids * np.array([[1], [2], [3], [0]])  # of any length; the last has no text, say
    np.testing.assert_allclose(transferability(longer)[1], (cosines[1, 2] + 0) / 2)


def test_transferability_is_that_of_the_text_parts(scored_by_embeddings):
    vectors = np.arange(12.0).reshape(1, 12)
    assert text_part(vectors, ["image", "text"] * 3).tolist() == [[2, 3, 6, 7, 10, 11]]
    for parts in (["text"], ["all"], ["image", "image"]):
        assert text_part(vectors, parts).tolist() == vectors.tolist()
    notes = {"parts": ["image", "text"]}
    scores = scored_by_embeddings(create("coincide", OPTIONS), VECTORS, notes=notes)
    clusters, found = scores.column("cluster"), scores.column("transferability")
    centroids = [unit(VECTORS)[clusters == cluster].mean(0)[3:] for cluster in range(5)]
    expected = transferability(np.stack(centroids))
    # Centroids are those of k-means, before samples move to the one with the largest cosine.
    np.testing.assert_allclose(found, expected[clusters], atol=0.1)
    whole = scored_by_embeddings(create("coincide", OPTIONS), VECTORS).column("transferability")
    assert np.abs(found - whole).max() > 0.1


def test_samples_are_taken_so_that_the_discrepancy_is_least_each_time():
    kernel = gaussian_kernel(unit(VECTORS[:15]))
    order = greedy_discrepancy(kernel).tolist()
    assert sorted(order) == list(range(15))
    for k in range(15):
        left = [j for j in range(15) if j not in order[:k]]
        best = min(discrepancy(kernel, [*order[:k], j]) for j in left)
        assert discrepancy(kernel, order[: k + 1]) == pytest.approx(best, abs=1e-12)


def test_shares_are_the_softmax_of_what_is_left():
    clusters = np.repeat([0, 1, 2], [4, 30, 30])
    places = np.concatenate([np.arange(n)[::-1] for n in (4, 30, 30)])
    logits = np.repeat([3.0, 2.0, 1.0], [4, 30, 30])
    kept = allocate(clusters, places, logits, np.ones(64), 20)
    sizes = np.bincount(clusters[kept])
    second = round(16 * np.exp(2) / (np.exp(2) + np.exp(1)))  # the first takes all of its 4, not 13
    assert sizes.tolist() == [4, second, 16 - second]
    assert kept[:4].tolist() == [3, 2, 1, 0]
    assert len(set(allocate(clusters, places, logits, np.ones(64), 64))) == 64
    assert len(allocate(clusters, places, logits, np.ones(64), 50)) == 50


def test_budgets_are_kept_to_and_filled(scored_by_embeddings):
    tokens = np.random.default_rng(1).integers(1, 9, 50)
    scores = scored_by_embeddings(create("coincide", OPTIONS), VECTORS, tokens=tokens)
    for budget, size in ((Budget(count=1), 1), (Budget(count=13), 13), (Budget(fraction=1.0), 50)):
        rows = create("coincide", OPTIONS).select(scores, budget)
        assert len(set(rows.tolist())) == len(rows) == size
    rows = create("coincide", OPTIONS).select(scores, Budget(tokens=60))
    assert 50 <= tokens[rows].sum() <= 60
    with pytest.raises(SelectorError, match="shares a budget"):
        create("coincide", OPTIONS).select(scores, Budget(threshold=0.0))


def test_the_pools_order_decides_nothing_and_one_sample_is_enough(scored_by_embeddings):
    kept = []
    for order in (np.arange(50), np.arange(50)[::-1]):
        scores = scored_by_embeddings(create("coincide", OPTIONS), VECTORS, order=order, rejected=(3,))
        kept.append({scores.ids[row] for row in create("coincide", OPTIONS).select(scores, Budget(count=20))})
    assert kept[0] == kept[1]
    alone = scored_by_embeddings(create("coincide"), VECTORS[:1])
    assert create("coincide").select(alone, Budget(count=1)).tolist() == [0]


def test_few_samples_go_to_the_clusters_that_transfer_best():
    clusters, places = np.repeat(np.arange(100), 66), np.tile(np.arange(66), 100)
    logits = np.linspace(5.0, 4.2, 100)[clusters]
    for budget in (10, 50):
        kept = allocate(clusters, places, logits, np.ones(6600), budget)
        assert sorted(clusters[kept]) == list(range(budget))
    spread = clusters[allocate(clusters, places, logits, np.ones(6600), 1320)]
    assert np.bincount(spread, minlength=100).min() > 0
