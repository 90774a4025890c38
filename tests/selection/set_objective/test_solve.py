"""Selected sets against every set there is, and what may not change them."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from ostlight.selection.set_objective import (
    Constraints,
    SetObjective,
    improve_by_exchange,
    round_relaxation,
    solve_greedily,
    solve_relaxation,
    solve_set,
    stratified_constraints,
)


def problem(seed: int, rows: int = 12, probes: int = 3, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((rows, probes)) * rng.lognormal(size=(rows, 1))
    return rng.standard_normal(rows) + 0.5 * phi[:, 0], phi.astype(dtype)


def objectives(seed: int, size: float, rows: int = 12) -> list[SetObjective]:
    f, phi = problem(seed, rows)
    return [
        SetObjective.minibatch(f, phi, eta=1.5, batch_size=math.inf, size=size),
        SetObjective.minibatch(f, phi, eta=0.4, batch_size=4, size=size),
    ]


def every_set(constraints: Constraints) -> list[np.ndarray]:
    """All sets within the constraints that nothing more fits into."""
    found = []
    for count in range(1, len(constraints) + 1):
        for chosen in combinations(range(len(constraints)), count):
            rows = np.array(chosen)
            left = constraints.budgets - constraints.costs_of(rows)
            rest = np.setdiff1d(np.arange(len(constraints)), rows)
            if (left >= 0).all() and not (constraints.costs[rest] <= left[constraints.groups[rest]]).any():
                found.append(rows)
    return found


CONSTRAINTS = {
    "count": Constraints.count(5, 12),
    "tokens": Constraints.tokens(40.0, np.array([5, 9, 3, 12, 7, 7, 20, 4, 6, 11, 2, 8])),
    "groups": stratified_constraints(list("aaaabbbbbccc"), 5),
    "tokens by group": stratified_constraints(
        list("aaaabbbbbccc"), 40, np.array([5, 9, 3, 12, 7, 7, 20, 4, 6, 11, 2, 8])
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("seed", range(6))
def test_no_set_exceeds_the_bound_and_the_set_is_allowed(name: str, seed: int):
    constraints = CONSTRAINTS[name]
    sets = every_set(constraints)
    for objective in objectives(seed, constraints.size):
        best = max(objective.value(rows) for rows in sets)
        found = solve_set(objective, constraints)
        assert sorted(found.rows.tolist()) in [rows.tolist() for rows in sets]
        assert found.value == pytest.approx(objective.value(found.rows), rel=1e-12)
        assert found.bound >= best - 1e-12
        assert found.gap >= best - found.value - 1e-12
        assert found.value >= max(found.greedy_value, found.rounded_value) - 1e-12


def test_counted_sets_are_the_optimum_nearly_always_and_never_far():
    lost = []
    for seed in range(40):
        for objective in objectives(seed, 5):
            best = max(objective.value(np.array(rows)) for rows in combinations(range(12), 5))
            found = solve_set(objective, Constraints.count(5, 12))
            lost.append((best - found.value) / (abs(best) + 0.1))
    assert np.mean(np.array(lost) < 1e-9) >= 0.9
    assert max(lost) < 0.1


def test_without_redundancy_the_set_is_the_top_of_the_gains():
    f, phi = problem(1)
    objective = SetObjective.minibatch(f, phi, eta=0.4, batch_size=1, size=5)
    alone = f - 0.2 * (phi**2).sum(1)
    found = solve_set(objective, Constraints.count(5, 12))
    assert found.rows.tolist() == np.argsort(-alone)[:5].tolist()
    assert found.gap == pytest.approx(0, abs=1e-12)


def test_greedy_one_at_a_time_takes_the_best_addition_each_time():
    f, phi = problem(4)
    objective = SetObjective.minibatch(f, phi, eta=1.5, batch_size=math.inf, size=5)
    taken: list[int] = []
    for _ in range(5):
        rest = [i for i in range(12) if i not in taken]
        taken.append(max(rest, key=lambda i: objective.value(np.array([*taken, i]))))
    assert solve_greedily(objective, Constraints.count(5, 12)).tolist() == taken


def test_a_redundant_copy_gives_way_to_another_direction():
    phi = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    objective = SetObjective.minibatch(np.array([1.0, 1, 1, 0.9, 0.9]), phi, eta=2.0, batch_size=math.inf, size=2)
    assert solve_set(objective, Constraints.count(2, 5)).rows.tolist() == [0, 3]


def test_the_relaxation_is_solved_to_its_tolerance_and_its_weights_have_its_value():
    f, phi = problem(7, rows=500, probes=8)
    objective = SetObjective.minibatch(f, phi, eta=2.0, batch_size=math.inf, size=100)
    constraints = Constraints.count(100, 500)
    found = solve_relaxation(objective, constraints)
    total = found.weights @ phi
    assert found.weights.sum() == pytest.approx(100, rel=1e-9)
    assert objective.value_at(float(found.weights @ objective.gains), total) == pytest.approx(found.value, rel=1e-9)
    assert 0 <= found.bound - found.value <= 2e-4 * max(1.0, abs(found.bound))
    assert len(round_relaxation(found, constraints)) == 100


def test_large_sets_lose_next_to_nothing():
    f, phi = problem(8, rows=5000, probes=8)
    objective = SetObjective.minibatch(f, phi, eta=2.0, batch_size=math.inf, size=1000)
    found = solve_set(objective, Constraints.count(1000, 5000))
    assert found.gap < 2e-3 * abs(found.bound)
    assert found.greedy_gap < 2e-2 * abs(found.bound)


def test_exchanges_raise_the_value_of_a_poor_set_and_keep_quotas():
    f, phi = problem(9, rows=300)
    constraints = stratified_constraints([str(i % 3) for i in range(300)], 60)
    objective = SetObjective.minibatch(f, phi, eta=0.4, batch_size=8, size=60)
    poor = constraints.fill(-f)
    better = improve_by_exchange(objective, constraints, poor)
    assert objective.value(better) > objective.value(poor) + 0.5
    assert constraints.costs_of(better).tolist() == [20, 20, 20]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["count", "tokens", "groups"])
def test_the_set_does_not_depend_on_the_order_of_the_rows(dtype: type, name: str):
    f, phi = problem(10, rows=400, probes=7, dtype=dtype)
    rng = np.random.default_rng(0)
    costs, strata, order = rng.integers(10, 99, 400), rng.integers(0, 4, 400).astype(str), rng.permutation(400)

    def selected(order: np.ndarray) -> np.ndarray:
        if name == "count":
            constraints = Constraints.count(80, 400)
        elif name == "tokens":
            constraints = Constraints.tokens(4000, costs[order])
        else:
            constraints = stratified_constraints(strata[order], 80)
        objective = SetObjective.minibatch(f[order], phi[order], eta=0.4, batch_size=8, size=constraints.size)
        return order[solve_set(objective, constraints).rows]

    assert selected(order).tolist() == selected(np.arange(400)).tolist()


def test_equal_samples_are_taken_in_row_order_every_time():
    objective = SetObjective.minibatch(np.ones(9), np.ones((9, 2)), eta=1.0, batch_size=math.inf, size=4)
    for _ in range(2):
        assert solve_set(objective, Constraints.count(4, 9)).rows.tolist() == [0, 1, 2, 3]


def test_a_budget_that_holds_all_takes_all():
    for constraints in (Constraints.count(99, 12), Constraints.tokens(1e9, np.full(12, 7.0))):
        found = solve_set(objectives(0, constraints.size)[0], constraints)
        assert sorted(found.rows.tolist()) == list(range(12))
        assert found.gap == pytest.approx(0, abs=1e-9)


def test_sketches_without_columns_rank_by_alignment():
    f = problem(2)[0]
    objective = SetObjective.minibatch(f, np.empty((12, 0)), eta=1.0, batch_size=math.inf, size=3)
    assert solve_set(objective, Constraints.count(3, 12)).rows.tolist() == np.argsort(-f)[:3].tolist()


def test_a_prefix_of_the_set_is_what_greedy_takes_of_it_first():
    objective = objectives(11, 40, rows=300)[0]
    rows = solve_set(objective, Constraints.count(40, 300)).rows
    members = np.sort(rows)
    assert rows.tolist() == members[solve_greedily(objective.of(members), Constraints.count(40, 40))].tolist()


def test_a_budget_nothing_fits_is_refused():
    with pytest.raises(ValueError, match=r"no sample fits the budget \[4.0\]; the cheapest costs 5"):
        solve_set(objectives(0, 1)[0], Constraints.tokens(4, np.full(12, 5.0)))


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="the objective has 12 samples, the constraints have 13"):
        solve_set(objectives(0, 3)[0], Constraints.count(3, 13))


def test_solving_needs_neither_torch_nor_sklearn():
    code = "import sys; sys.modules['torch'] = None; sys.modules['sklearn'] = None; "
    code += "import ostlight.selection.set_objective"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
