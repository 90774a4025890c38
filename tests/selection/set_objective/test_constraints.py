"""What fits a budget, and the linear problem over it."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from ostlight.selection.set_objective import Constraints
from ostlight.selection.set_objective.constraints import top


def test_top_takes_ties_in_row_order_and_never_minus_infinity():
    values = np.array([1.0, 3, 2, 3, -np.inf, 2])
    assert top(values, 3).tolist() == [1, 3, 2]
    assert top(values, 6).tolist() == [1, 3, 2, 5, 0]
    assert top(values, 0).tolist() == []


def test_fill_skips_what_does_not_fit_and_goes_on():
    constraints = Constraints.tokens(10, np.array([6, 6, 3, 2, 1]))
    assert constraints.fill(np.array([60.0, 50, 20, 10, 1])).tolist() == [0, 2, 4]


def test_a_filled_budget_costs_at_least_what_is_said():
    rng = np.random.default_rng(0)
    for _ in range(50):
        constraints = Constraints.by_group(rng.integers(0, 3, 20), rng.integers(0, 60, 3), rng.integers(1, 20, 20))
        spent = constraints.costs_of(constraints.fill(rng.standard_normal(20)))
        assert (spent <= constraints.budgets).all()
        assert (spent >= constraints.smallest_cost).all()


def test_the_vertex_beats_every_grid_point_of_the_limits():
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, costs = rng.standard_normal(5), rng.integers(1, 6, 5)
        constraints = Constraints.by_group(np.array([0, 0, 0, 1, 1]), [5, 4], costs)
        weights = constraints.vertex(values)
        spent = np.bincount(constraints.groups, constraints.costs * weights)
        assert (spent <= constraints.budgets + 1e-12).all()
        assert (spent >= constraints.smallest_cost - 1e-12).all()
        for grid in product(np.linspace(0, 1, 6), repeat=5):
            cost = np.bincount(constraints.groups, constraints.costs * np.array(grid))
            if (cost <= constraints.budgets).all() and (cost >= constraints.smallest_cost).all():
                assert values @ np.array(grid) <= values @ weights + 1e-12


def test_the_size_of_a_token_budget_is_what_it_buys_at_the_mean_cost():
    assert Constraints.tokens(30, np.array([5.0, 10, 15, 10])).size == pytest.approx(3)
    assert Constraints.count(3, 12).size == 3


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
def test_costs_without_meaning_are_refused(cost: float):
    with pytest.raises(ValueError, match="row 1 costs .*; every sample must cost a finite number above 0"):
        Constraints.tokens(10, np.array([1.0, cost, 2.0]))


def test_groups_without_a_budget_and_budgets_that_are_no_number_are_refused():
    with pytest.raises(ValueError, match="groups run from 0 to 2, but there are 2 budgets"):
        Constraints.by_group(np.array([0, 1, 2]), [1, 1])
    with pytest.raises(ValueError, match="budgets must be finite and not negative"):
        Constraints.by_group(np.array([0, 1]), [1, math.nan])
    with pytest.raises(ValueError, match=r"groups and costs must be \[N\]; got \(2,\) and \(3,\)"):
        Constraints.by_group(np.array([0, 1]), [1, 1], np.ones(3))
