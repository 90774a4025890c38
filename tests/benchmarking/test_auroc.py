"""AUROC over all pairs and within strata, against a count of every pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ostlight.benchmarking.auroc import MIN_RESAMPLED, auroc


def made(records: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_clean = rng.random(records) < 0.6
    scores = np.round(rng.normal(size=records) + 0.7 * is_clean, 1)  # rounded: ties
    return scores, is_clean, rng.integers(0, 3, records)


def test_it_is_the_share_of_pairs_in_order():
    scores, is_clean, _ = made(200)
    found = auroc(scores, is_clean)
    assert found.value == pytest.approx(roc_auc_score(is_clean, scores), abs=1e-12)
    assert found.pairs == is_clean.sum() * (~is_clean).sum()
    assert found.low < found.value < found.high


def test_within_strata_only_pairs_of_one_stratum_count():
    scores, is_clean, strata = made(60)
    scores = scores + 10 * strata  # what differs between strata must not count
    wins, pairs = 0.0, 0
    for one, other in itertools.product(np.flatnonzero(is_clean), np.flatnonzero(~is_clean)):
        if strata[one] == strata[other]:
            wins += (scores[one] > scores[other]) + 0.5 * (scores[one] == scores[other])
            pairs += 1
    found = auroc(scores, is_clean, strata)
    assert (found.value, found.pairs) == (pytest.approx(wins / pairs), pairs)


@pytest.mark.parametrize("strata", [1, 3 * MIN_RESAMPLED])
def test_intervals_hold_the_truth_about_as_often_as_they_say(strata):
    inside, trials = 0, 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        is_clean = rng.random(300) < 0.5
        scores = rng.normal(size=300) + 0.5 * is_clean
        found = auroc(scores, is_clean, rng.integers(0, strata, 300))
        inside += found.low <= 0.6381631 <= found.high  # the normal distribution at 0.5 / sqrt(2)
    assert 0.9 * trials <= inside <= 0.99 * trials


def test_without_a_pair_there_is_none():
    assert auroc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert auroc(np.array([1.0, 2.0]), np.array([True, False]), np.array([0, 1])) is None


def test_one_pair_has_a_value_and_no_interval():
    found = auroc(np.array([2.0, 1.0]), np.array([True, False]))
    assert found.value == 1.0
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(("clean", "defective"), [(4, 50), (50, 4)])
def test_few_records_on_a_side_have_no_interval(clean: int, defective: int):
    rng, is_clean = np.random.default_rng(0), np.arange(54) < clean
    assert np.isnan(auroc(rng.normal(size=clean + defective), is_clean).low)
    assert not np.isnan(auroc(rng.normal(size=55), np.arange(55) % 2 == 0).low)


def test_a_perfect_order_has_no_interval_rather_than_one_without_width():
    found = auroc(np.arange(40.0), np.arange(40) >= 20)
    assert found.value == 1.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)
