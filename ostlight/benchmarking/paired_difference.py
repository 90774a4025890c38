"""Paired differences between two rows of a comparison, with intervals over seeds and test items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4_000
CHUNK = 500
"""Resamples held in memory together."""


@dataclass(frozen=True)
class Difference:
    """A mean difference in a metric and its 95% interval, in the metric's unit.

    Attributes:
        seeds: pairs of runs it is over.
        items: test items it is over.
    """

    mean: float
    low: float
    high: float
    seeds: int
    items: int


def paired_difference(values: np.ndarray, baseline: np.ndarray, resamples: int = RESAMPLES) -> Difference:
    """Returns the mean difference with a bootstrap interval over both sources of chance.

    Seeds and test items are resampled with replacement, independently. Both rows are resampled alike, so that what they
    share (an easy item, a lucky order) cancels. With few seeds the percentile interval is a little narrow: by
    ``sqrt((S - 1) / S)`` in the seeds' share of it.

    Args:
        values, baseline: ``[S, I]`` the metric of run ``s`` on item ``i`` (for accuracy, whether it is correct), items
            in the same order. One run alone (an untrained model) is compared to every run of the other row.
        resamples: their number; the generator's seed is fixed, so the same runs give the same interval.

    Raises:
        ValueError: the rows differ in their numbers of seeds or items.
    """
    delta = np.atleast_2d(values).astype(np.float64) - np.atleast_2d(baseline).astype(np.float64)
    seeds, items = delta.shape
    generator = np.random.default_rng(0)
    means: list[np.ndarray] = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        by_item = generator.integers(items, size=(count, items))
        means.append(np.take_along_axis(by_seed @ delta, by_item, axis=1).mean(axis=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Difference(float(delta.mean()), float(low), float(high), seeds, items)
