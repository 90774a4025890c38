"""Lazy greedy on neighbours against plain greedy on all cosines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.selection.registry import create
from ostlight_selectors.facility_location import STEP, cosine_neighbours, greedy_gains

VECTORS = np.random.default_rng(0).normal(size=(40, 4))


def similarities(vectors):
    half = vectors.astype(np.float16).astype(float)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    rounded = np.maximum(0, np.round(half @ half.T / STEP) * STEP)
    np.fill_diagonal(rounded, 1)
    return rounded


def plain_greedy(similarity):
    """Order, and gain of each when it is taken; every gain is computed anew."""
    order, gains = [], []
    best = np.zeros(len(similarity))
    while len(order) < len(similarity):
        left = [j for j in range(len(similarity)) if j not in order]
        each = [np.maximum(similarity[:, j] - best, 0).sum() for j in left]
        order.append(left[int(np.argmax(each))])
        gains.append(max(each))
        best = np.maximum(best, similarity[:, order[-1]])
    return order, gains


def test_with_all_neighbours_it_is_greedy_on_all_cosines(scored_by_embeddings):
    order, gains = plain_greedy(similarities(VECTORS))
    selector = create("facility_location", {"neighbours": 100})
    scores = scored_by_embeddings(selector, VECTORS)
    np.testing.assert_allclose(scores.score[order], gains, atol=1e-4)
    assert selector.select(scores, Budget(count=12)).tolist() == order[:12]
    tokens = np.random.default_rng(1).integers(1, 9, 40)
    kept = selector.select(scores.with_tokens(tokens), Budget(tokens=30))
    assert kept.tolist() == [j for k, j in enumerate(order) if tokens[order[: k + 1]].sum() <= 30]


def test_greedy_on_neighbours_counts_likeness_beyond_them_as_nothing():
    vectors = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)
    sparse = cosine_neighbours(vectors, 5).toarray()
    cosines = vectors @ vectors.T
    for i in range(40):
        nearest = [j for j in np.argsort(-cosines[i]) if j != i][:5]
        expected = np.zeros(40)
        expected[nearest], expected[i] = np.maximum(0, cosines[i, nearest]), 1
        np.testing.assert_allclose(sparse[i], expected, atol=STEP)
    _, gains = plain_greedy(sparse)
    np.testing.assert_allclose(np.sort(greedy_gains(cosine_neighbours(vectors, 5)))[::-1], gains, atol=1e-9)


def test_greedy_is_near_the_best_set_of_that_size():
    similarity = similarities(VECTORS[:12])
    order, _ = plain_greedy(similarity)
    values = [similarity[:, list(some)].max(1).sum() for some in itertools.combinations(range(12), 3)]
    assert similarity[:, order[:3]].max(1).sum() >= (1 - 1 / np.e) * max(values)


def test_the_pools_order_decides_nothing_and_few_samples_are_enough(scored_by_embeddings):
    first, second = (
        scored_by_embeddings(create("facility_location"), VECTORS, order=order, rejected=(3,))
        for order in (np.arange(40), np.arange(40)[::-1])
    )
    assert dict(zip(first.ids, first.score, strict=True)) == dict(zip(second.ids, second.score, strict=True))
    alone = scored_by_embeddings(create("facility_location"), VECTORS[:1])
    assert alone.score.tolist() == [1]
    copies = scored_by_embeddings(create("facility_location"), np.repeat(VECTORS[:1], 4, axis=0))
    assert copies.score.tolist() == pytest.approx([4, 0, 0, 0], abs=1e-5)
