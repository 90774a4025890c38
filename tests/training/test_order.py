"""The order of a pass: each sample once, by the ranking where it is asked for."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ostlight.config.schema import Order, Training
from ostlight.training.order import pass_order
from ostlight.training.steps import plan_steps


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("begun", [0.0, 0.5])
def test_every_sample_is_shown_once_a_pass(order: str, begun: float):
    assert sorted(pass_order(order, 97, 3, begun, 0.5)) == list(range(97))


def test_the_ranking_first_to_last_and_last_to_first():
    assert pass_order("utility_descending", 5, 0, 0, 1).tolist() == [0, 1, 2, 3, 4]
    assert pass_order("utility_ascending", 5, 0, 0, 1).tolist() == [4, 3, 2, 1, 0]


def rank_correlation(order: np.ndarray) -> float:
    return float(np.corrcoef(np.arange(len(order)), order)[0, 1])


def test_annealed_begins_by_the_ranking_and_ends_as_a_shuffle():
    passes = [pass_order("annealed", 2000, seed, seed / 10, 0.1) for seed in range(10)]
    assert passes[0][:20].tolist() == list(range(20))
    found = [rank_correlation(p) for p in passes]
    assert found[0] > 0.7
    assert abs(found[-1]) < 0.2
    assert sorted(found, reverse=True)[:3] == found[:3]
    assert (pass_order("annealed", 2000, 1, 0.5, 0.1) != pass_order("annealed", 2000, 2, 0.5, 0.1)).any()


def test_a_plan_orders_every_pass():
    training = Training(epochs=2, batch_size=4, order="utility_descending")
    assert np.concatenate(plan_steps(10, training, seed=0)).tolist() == [*range(10), *range(10)]
