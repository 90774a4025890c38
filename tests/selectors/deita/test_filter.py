"""The representation filter against a loop over single samples."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ostlight.errors import SelectorError
from ostlight_selectors.deita.filter import filter_similar


def by_hand(embeddings: np.ndarray, order: np.ndarray, similarity: float, count: int) -> list[int]:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) == count:
            break
        if not kept or float((unit[kept] @ unit[row]).max()) <= similarity:
            kept.append(row)
    return kept


def clustered(count: int, width: int, spread: float, seed: int) -> np.ndarray:
    """Rows around a tenth as many centres, so that many resemble one another and cosines lie on both sides of 0.9."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 10, width))
    return centres[rng.integers(len(centres), size=count)] + spread * rng.normal(size=(count, width))


@pytest.mark.parametrize("block", [1, 7, 256, 5000])
def test_the_same_picks_as_one_by_one_for_any_block(block: int):
    embeddings = clustered(2000, 384, 0.33, seed=0)
    order = np.random.default_rng(1).permutation(2000)
    expected = by_hand(embeddings, order, 0.9, 400)
    looked_at = order.tolist().index(expected[-1]) + 1
    assert looked_at > 1.2 * len(expected), "nothing was dropped on the way"
    assert filter_similar(embeddings, order, 0.9, np.ones(2000), 400, block).tolist() == expected


def at(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


@pytest.mark.parametrize("block", [1, 2, 3, 10])
def test_what_is_dropped_keeps_nobody_out(block: int):
    # Cosine 0.9 is 25.8 degrees: the second resembles the first, the third only the second, the fourth only the third.
    embeddings = np.array([at(0), at(20), at(40), at(60)])
    assert filter_similar(embeddings, np.arange(4), 0.9, np.ones(4), 4, block).tolist() == [0, 2]


@pytest.mark.parametrize("block", [1, 2, 10])
def test_only_the_kept_count_not_the_whole_pool(block: int):
    # Each has a neighbour in the pool; measured against the pool, none but outliers would be left.
    embeddings = np.array([at(0), at(1), at(90), at(91)])
    assert filter_similar(embeddings, np.array([1, 3, 0, 2]), 0.9, np.ones(4), 4, block).tolist() == [1, 3]


def test_lengths_of_vectors_do_not_matter():
    embeddings = np.array([at(0), at(10), at(90)]) * np.array([[1.0], [100.0], [0.01]])
    assert filter_similar(embeddings, np.arange(3), 0.9, np.ones(3), 3).tolist() == [0, 2]


def test_a_token_budget_ends_at_the_first_that_does_not_fit():
    embeddings = np.eye(4)
    costs = np.array([5, 4, 3, 1])
    assert filter_similar(embeddings, np.arange(4), 0.9, costs, 10).tolist() == [0, 1]


def test_a_dropped_sample_costs_nothing():
    embeddings = np.array([at(0), at(1), at(90)])
    assert filter_similar(embeddings, np.arange(3), 0.9, np.array([5, 100, 5]), 10).tolist() == [0, 2]


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SelectorError, match=r"deita needs faiss .* pip install 'ostlight\[deita\]'"):
        filter_similar(np.eye(2), np.arange(2), 0.9, np.ones(2), 2)
