"""Draws hang on seed and name alone, and are uniform."""

from __future__ import annotations

import numpy as np

from ostlight.selection.random_numbers import uniform_by_id


def test_the_same_for_a_name_wherever_it_stands_and_another_for_another_seed():
    names = [f"record {i}" for i in range(1_000)]
    first = uniform_by_id(3, names)
    assert uniform_by_id(3, reversed(names)) == first[::-1]
    assert uniform_by_id(3, names[40:50]) == first[40:50]
    assert not set(uniform_by_id(4, names)) & set(first)


def test_uniform():
    found = np.sort(uniform_by_id(0, map(str, range(20_000))))
    assert np.abs(found - np.arange(20_000) / 20_000).max() < 1.95 / np.sqrt(
        20_000
    )  # Kolmogorov and Smirnov, p = 0.001
