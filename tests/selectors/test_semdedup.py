"""SemDeDup against the authors' rule, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.selection.registry import create
from ostlight_selectors import semdedup
from ostlight_selectors.embed import spherical_clusters
from ostlight_selectors.semdedup import largest_cosine_before


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pool_of_pairs():
    """60 samples; the last 20 are near-copies of the first 20."""
    random = np.random.default_rng(0)
    first = random.normal(size=(40, 8))
    return np.concatenate([first, first[:20] + 0.01 * random.normal(size=(20, 8))])


def duplicates(vectors, clusters, centroids, eps, keep):
    """Samples that the authors' code removes: in each cluster, those too like one that comes before them."""
    removed = set()
    for cluster in range(len(centroids)):
        members = np.flatnonzero(clusters == cluster)
        likeness = vectors[members] @ centroids[cluster]
        members = members[np.argsort(likeness if keep == "hard" else -likeness, kind="stable")]
        for k in range(1, len(members)):
            if max(vectors[members[j]] @ vectors[members[k]] for j in range(k)) > 1 - eps:
                removed.add(int(members[k]))
    return removed


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_duplicates_are_those_of_the_authors_rule(scored_by_embeddings, keep):
    options = {"clusters": 4, "keep": keep, "eps": 0.05}
    scores = scored_by_embeddings(create("semdedup", options), pool_of_pairs())
    vectors = unit(pool_of_pairs().astype(np.float16).astype(np.float32))
    clusters, centroids = spherical_clusters(vectors, 4, seed=0)
    expected = duplicates(vectors, clusters, centroids, 0.05, keep)
    assert len(expected) >= 18  # nearly all pairs share a cluster
    kept = create("semdedup", options).select(scores, Budget(fraction=1.0))
    assert set(range(60)) - set(kept.tolist()) == expected
    assert set(create("semdedup").select(scores, Budget(threshold=0.05)).tolist()) == set(kept.tolist())
    assert len(create("semdedup", options).select(scores, Budget(count=7))) == 7
    assert len(create("semdedup").select(scores, Budget(fraction=1.0))) == 60


def test_blocks_change_nothing(monkeypatch):
    vectors = unit(np.random.default_rng(1).normal(size=(23, 4)))
    whole = largest_cosine_before(vectors)
    expected = [0.0, *(max(0.0, max(vectors[:k] @ vectors[k])) for k in range(1, 23))]
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    monkeypatch.setattr(semdedup, "BLOCK", 5)
    np.testing.assert_allclose(largest_cosine_before(vectors), whole, atol=1e-12)


def test_the_pools_order_decides_nothing_and_the_seed_repeats(scored_by_embeddings):
    def by_id(**changes):
        scores = scored_by_embeddings(create("semdedup"), pool_of_pairs(), **changes)
        return dict(zip(scores.ids, scores.score.tolist(), strict=True))

    assert by_id() == by_id() == by_id(order=np.arange(60)[::-1])
    assert by_id(seed=1) != by_id()


def test_k_means_finds_the_nearest_centroid_and_allows_more_clusters_than_samples(scored_by_embeddings):
    vectors = unit(np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32))
    clusters, centroids = spherical_clusters(vectors, None, seed=0)
    assert centroids.shape == (14, 6)
    np.testing.assert_array_equal(clusters, [int(np.argmax([c @ v for c in centroids])) for v in vectors])
    for cluster, centroid in enumerate(centroids):  # a fixed point, up to the last assignment by cosine
        assert centroid @ unit(vectors[clusters == cluster].mean(0)[None])[0] > 0.95
    same = np.repeat(vectors[:1], 5, axis=0)
    assert spherical_clusters(same, 9, seed=0)[0].max() < 5
    assert scored_by_embeddings(create("semdedup", {"clusters": 9}), same).score.tolist() == pytest.approx(
        [1, 0, 0, 0, 0], abs=1e-6
    )
    alone = scored_by_embeddings(create("semdedup"), vectors[:1])
    assert alone.score.tolist() == [1]
