"""The set objective against its definition, written out in loops."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from ostlight.selection.set_objective import SetObjective, minibatch_value


@pytest.fixture
def sketch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal(7), rng.standard_normal((7, 3))


def test_batches_without_bound_are_the_second_order_expansion_of_one_step_along_the_mean(sketch):
    rng = np.random.default_rng(0)
    gradients, anchor_gradient, root = rng.standard_normal((7, 5)), rng.standard_normal(5), rng.standard_normal((5, 5))
    curvature = root @ root.T
    rows, eta = np.array([0, 2, 5]), 0.9
    step = -eta * gradients[rows].mean(0)
    gained = -(step @ anchor_gradient + step @ curvature @ step / 2)
    value = minibatch_value(gradients @ anchor_gradient, gradients @ root, rows, eta, math.inf)
    assert eta * value == pytest.approx(gained, rel=1e-12)


def test_minibatch_is_the_mean_over_every_batch_drawn_with_replacement(sketch):
    f, phi = sketch
    rows, eta, size = np.array([1, 3, 4]), 0.7, 3
    gains = []
    for batch in product(rows, repeat=size):
        step = phi[list(batch)].mean(0)
        gains.append(eta * f[list(batch)].mean() - eta**2 / 2 * step @ step)
    assert minibatch_value(f, phi, rows, eta, size) == pytest.approx(np.mean(gains) / eta, rel=1e-12)


def test_batches_of_one_rank_sample_by_sample(sketch):
    f, phi = sketch
    rows, eta = np.array([1, 3, 4, 6]), 0.4
    alone = [eta * f[i] - eta**2 / 2 * phi[i] @ phi[i] for i in rows]
    assert minibatch_value(f, phi, rows, eta, 1) == pytest.approx(np.mean(alone) / eta, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, math.inf])
def test_the_function_of_weights_has_the_values_of_sets(sketch, batch_size: float):
    f, phi = sketch
    rows = np.array([6, 0, 3])
    objective = SetObjective.minibatch(f, phi, eta=0.2, batch_size=batch_size, size=3)
    assert objective.value(rows) == pytest.approx(minibatch_value(f, phi, rows, 0.2, batch_size), rel=1e-12)


def test_marginal_gains_and_own_curvature_give_what_a_sample_adds(sketch):
    f, phi = sketch
    objective = SetObjective.minibatch(f, phi, eta=0.9, batch_size=2, size=4)
    rows = np.array([1, 2])
    promised = (objective.marginal_gains(objective.total(rows)) - objective.own)[5] / 4
    added = objective.value(np.array([1, 2, 5])) - objective.value(rows)
    assert promised == pytest.approx(added, rel=1e-12)


def test_float32_sketches_stay_float32_and_sum_in_float64():
    phi = np.full((100_000, 2), 0.1, dtype=np.float32)
    objective = SetObjective.minibatch(np.zeros(100_000), phi, eta=1.0, batch_size=math.inf, size=10)
    assert objective.phi is phi
    assert objective.total(np.arange(100_000))[0] == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-13)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["f", "phi"])
def test_values_that_are_not_finite_are_refused_with_their_row(bad: float, where: str):
    f, phi = np.ones(70_000), np.ones((70_000, 2), dtype=np.float32)
    (f if where == "f" else phi[:, 1])[66_123] = bad
    with pytest.raises(ValueError, match="row 66123 is not finite .* leave such samples out"):
        SetObjective.minibatch(f, phi, eta=1.0, batch_size=math.inf, size=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": 0.0}, "eta must be above 0; got 0.0"),
        ({"batch_size": 0.5}, "batch_size must be at least 1; got 0.5"),
        ({"size": 0}, "size must be at least 1; got 0"),
    ],
)
def test_scales_without_meaning_are_refused(sketch, change: dict[str, float], message: str):
    settings = {"eta": 0.1, "batch_size": 4, "size": 3} | change
    with pytest.raises(ValueError, match=message):
        SetObjective.minibatch(*sketch, **settings)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4, 2\)"):
        SetObjective.minibatch(np.ones(3), np.ones((4, 2)), eta=1.0, batch_size=math.inf, size=1)
    with pytest.raises(ValueError, match="N of at least 1"):
        SetObjective.minibatch(np.ones(0), np.ones((0, 2)), eta=1.0, batch_size=math.inf, size=1)
