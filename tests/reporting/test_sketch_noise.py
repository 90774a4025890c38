"""The noise of a utility equals the sampling error of the probes, and is rarely called toxic."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.reporting.sketch_noise import Z_95, beyond_noise, curvature_error, measurable


def drawn(rng: np.random.Generator, samples: int, groups: int, probes: int, strength: np.ndarray) -> np.ndarray:
    """Sketches of one fixed gradient: ``<g, q>`` is normal with the group's curvature as its variance."""
    columns = rng.standard_normal((samples, groups, probes)) * np.sqrt(strength)[:, None] / np.sqrt(probes)
    return columns.reshape(samples, groups * probes)


def test_error_equals_the_jackknife():
    phi = np.random.default_rng(0).standard_normal((3, 10))
    for row, error in zip(phi, curvature_error(phi, groups=2), strict=True):
        squares = (row**2).reshape(2, 5)
        whole = squares.sum()
        left_out = np.array(
            [whole - squares[g].sum() + np.delete(squares[g], k).sum() * 5 / 4 for g in range(2) for k in range(5)]
        ).reshape(2, 5)
        # The stratified jackknife (Jones, 1974): each group's replicates against their own mean.
        expected = (4 / 5 * np.square(left_out - left_out.mean(1, keepdims=True)).sum()) ** 0.5
        assert error == pytest.approx(expected)


@pytest.mark.parametrize(("groups", "probes"), [(1, 64), (1, 16), (7, 16)])
def test_error_equals_the_spread_over_random_probes(groups: int, probes: int):
    strength = np.linspace(0.5, 2, groups)
    phi = drawn(np.random.default_rng(1), 4000, groups, probes, strength)
    estimates = np.square(phi).sum(1)
    assert np.sqrt(np.mean(curvature_error(phi, groups) ** 2)) == pytest.approx(estimates.std(), rel=0.05)


@pytest.mark.parametrize("probes", [8, 16, 64])
def test_samples_with_utility_zero_are_rarely_called_toxic(probes: int):
    """A sample whose slope and curvature cancel exactly: any sign of its utility is noise."""
    eta, curvature = 0.1, 1.0
    phi = drawn(np.random.default_rng(2), 20_000, 1, probes, np.array([curvature]))
    slope = eta / 2 * curvature
    utility = eta * slope - eta**2 / 2 * np.square(phi).sum(1)
    error = eta**2 / 2 * curvature_error(phi)
    toxic = beyond_noise(utility, error, np.full(len(phi), eta * slope))
    assert (utility < 0).mean() > 0.4
    assert toxic.mean() < 0.025


def test_negative_first_order_utility_is_toxic_whatever_the_probes():
    utility, error = np.array([-0.1, -0.1, 0.1]), np.array([1.0, 1.0, 1.0])
    assert beyond_noise(utility, error, np.array([-0.05, 0.05, 0.2])).tolist() == [True, False, False]
    assert beyond_noise(np.array([-1.0]), np.array([0.9 / Z_95])).tolist() == [True]


def test_error_needs_two_probes_a_group():
    assert measurable(64, 1)
    assert measurable(14, 7)
    assert not measurable(7, 7)
    assert not measurable(10, 7)
