"""Intervals of paired differences over seeds and items; what both rows share cancels."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.benchmarking.paired_difference import paired_difference


def noisy(seeds: int, items: int, rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, items)) < rate


def test_the_mean_is_that_of_the_pairs():
    ours, theirs = noisy(5, 200, 0.8, 1), noisy(5, 200, 0.6, 2)
    difference = paired_difference(ours, theirs)
    assert difference.mean == pytest.approx(ours.mean() - theirs.mean())
    assert difference.low < difference.mean < difference.high
    assert (difference.seeds, difference.items) == (5, 200)
    assert difference.low > 0


def test_independent_answers_give_the_textbook_interval():
    # Variance of a mean of S * I independent differences, each of variance p(1-p) + q(1-q).
    ours, theirs = noisy(40, 400, 0.8, 3), noisy(40, 400, 0.6, 4)
    difference = paired_difference(ours, theirs)
    textbook = 1.96 * np.sqrt((0.8 * 0.2 + 0.6 * 0.4) / (40 * 400))
    assert (difference.high - difference.low) / 2 == pytest.approx(textbook, rel=0.15)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("luck", [0.0, 0.03])
def test_intervals_of_few_seeds_cover_what_they_promise(seeds: int, luck: float):
    draw = np.random.default_rng(1)

    def runs() -> np.ndarray:
        return draw.random((seeds, 300)) < 0.7 + draw.normal(0, luck, (seeds, 1))

    found = [paired_difference(runs(), runs()) for _ in range(400)]
    assert 0.93 <= np.mean([d.low <= 0 <= d.high for d in found]) <= 0.995


def test_an_effect_of_the_seed_on_both_rows_cancels():
    luck = np.random.default_rng(5).random(6)[:, None]
    items = np.random.default_rng(6).random((6, 300))
    theirs = items < 0.3 + 0.5 * luck
    assert paired_difference(theirs, theirs).low == paired_difference(theirs, theirs).high == 0
    better = theirs.copy()
    better[:, :30] = True
    difference = paired_difference(better, theirs)
    unpaired = paired_difference(better, theirs[::-1])
    assert difference.high - difference.low < unpaired.high - unpaired.low


def test_seeds_that_disagree_widen_the_interval_however_many_items_there_are():
    theirs = np.zeros((5, 5_000), dtype=bool)
    ours = theirs.copy()
    for seed, share in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        ours[seed, : int(share * 5_000)] = True
    difference = paired_difference(ours, theirs)
    spread = np.std([0.0, 0.1, 0.2, 0.3, 0.4], ddof=1) / np.sqrt(5)
    assert (difference.high - difference.low) / 2 == pytest.approx(2.776 * spread, rel=0.02)  # Student's t, 4 degrees


def test_one_seed_or_one_item_leaves_the_other_source():
    runs = noisy(5, 300, 0.7, 11)
    over_items = paired_difference(runs[:1], runs[1:2])
    error = (runs[0] * 1.0 - runs[1]).std(ddof=1) / np.sqrt(300)
    assert (over_items.high - over_items.low) / 2 == pytest.approx(1.968 * error, rel=0.001)
    over_seeds = paired_difference(np.arange(5.0)[:, None], np.zeros((5, 1)))
    assert (over_seeds.high - over_seeds.low) / 2 == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=0.001)


def test_one_untrained_model_is_compared_to_every_run():
    difference = paired_difference(noisy(4, 100, 0.9, 7), noisy(1, 100, 0.3, 8))
    assert (difference.seeds, difference.items) == (4, 100)


def test_the_same_runs_give_the_same_interval():
    ours, theirs = noisy(3, 50, 0.7, 9), noisy(3, 50, 0.7, 10)
    assert paired_difference(ours, theirs) == paired_difference(ours, theirs)


def test_rows_over_different_items_are_refused():
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference(noisy(3, 50, 0.7, 1), noisy(3, 40, 0.7, 1))
