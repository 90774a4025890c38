"""Shares of the budget by stratum, and strata found from gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostlight.selection.set_objective import gradient_clusters, stratified_constraints


def test_shares_are_the_largest_remainders_and_add_up():
    constraints = stratified_constraints(["a"] * 5 + ["b"] * 3 + ["c"] * 3, 4)
    assert constraints.budgets.tolist() == [2, 1, 1]
    assert constraints.groups.tolist() == [0] * 5 + [1] * 3 + [2] * 3


def test_token_shares_follow_tokens():
    constraints = stratified_constraints(["a", "a", "b"], 100, np.array([100, 200, 100]))
    assert constraints.budgets.tolist() == [75, 25]


def test_shares_follow_the_weights_and_what_a_stratum_lacks_goes_to_others():
    labels = ["a"] * 2 + ["b"] * 10
    assert stratified_constraints(labels, 4, weights={"a": 1, "b": 1}).budgets.tolist() == [2, 2]
    assert stratified_constraints(labels, 6, weights={"a": 1}).budgets.tolist() == [2, 4]
    assert stratified_constraints(labels, 6, weights={"a": 3, "b": 1, "elsewhere": 9}).budgets.tolist() == [2, 4]
    assert stratified_constraints(labels, 99).budgets.tolist() == [2, 10]


def test_quotas_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="the budget must be at least 1; got 0"):
        stratified_constraints(["a", "b"], 0)
    with pytest.raises(ValueError, match="no stratum has a weight; the strata are a, b"):
        stratified_constraints(["a", "b"], 1, weights={"c": 1})
    with pytest.raises(ValueError, match="2 labels need as many costs"):
        stratified_constraints(["a", "b"], 1, np.ones(3))


def directions(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three well-separated directions with norms from a quarter to four times the median."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, rows)
    phi = np.eye(3, 6)[kind] + 0.05 * rng.standard_normal((rows, 6))
    return rng.standard_normal(rows) * 0.1, phi * rng.lognormal(sigma=0.5, size=(rows, 1)), kind


def test_clusters_are_directions_whatever_the_norms():
    f, phi, kind = directions(600)
    found = gradient_clusters(f, phi, 3)
    assert np.mean([np.bincount(kind[found == c]).max() / (found == c).sum() for c in range(3)]) > 0.95


def test_clusters_are_the_same_again_and_in_another_order():
    f, phi, _ = directions(500)
    order = np.random.default_rng(1).permutation(500)
    first = gradient_clusters(f, phi, 5, seed=3)
    assert gradient_clusters(f, phi, 5, seed=3).tolist() == first.tolist()
    assert gradient_clusters(f[order], phi[order], 5, seed=3).tolist() == first[order].tolist()


def test_copies_of_one_sample_and_samples_without_gradient_make_fewer_clusters_quietly():
    assert len(gradient_clusters(np.zeros(20), np.zeros((20, 2)), 4)) == 20
    assert len(set(gradient_clusters(np.ones(20), np.ones((20, 2)), 4).tolist())) == 1


def test_clusters_without_meaning_are_refused():
    with pytest.raises(ValueError, match="13 clusters of 12 samples"):
        gradient_clusters(np.ones(12), np.ones((12, 2)), 13)
    with pytest.raises(ValueError, match="row 0 is not finite"):
        gradient_clusters(np.full(12, math.nan), np.ones((12, 2)), 2)
