"""The scale is the one whose set does best, and everything tried is told."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from ostlight.errors import DivergedError
from ostlight.selection.set_objective import Limits, Pick, Scale, SetObjective, choose_scale, solve_set

RNG = np.random.default_rng(0)
F, PHI = RNG.standard_normal(60), RNG.standard_normal((60, 4))
CANDIDATES = [Scale(0.1, 8), Scale(0.5, 8), Scale(2.0)]


def pick(scale: Scale) -> Pick:
    objective = SetObjective.minibatch(F, PHI, eta=scale.eta, batch_size=scale.batch_size, size=12)
    return solve_set(objective, Limits.count(12, 60))


def test_the_lowest_loss_is_chosen_and_all_figures_are_kept():
    losses = iter([0.9, 0.4, 0.6])
    seen = []

    def loss_after(rows: np.ndarray) -> float:
        seen.append(rows.tolist())
        return next(losses)

    choice = choose_scale(CANDIDATES, pick, loss_after)
    assert choice.best.scale == CANDIDATES[1]
    assert [one.loss for one in choice.tried] == [0.9, 0.4, 0.6]
    assert seen == [pick(scale).rows.tolist() for scale in CANDIDATES]
    assert [one.scale.label for one in choice.tried] == ["eta=0.1 B=8", "eta=0.5 B=8", "e=2"]


def test_equal_sets_are_trained_on_once_and_the_first_of_equals_is_kept():
    calls = []
    choice = choose_scale([Scale(0.1, 8), Scale(0.1, 8)], pick, lambda rows: calls.append(rows) or 0.5)
    assert len(calls) == 1
    assert choice.best is choice.tried[0]


def test_a_diverged_training_is_never_chosen():
    losses = iter([math.nan, 5.0, -math.inf])
    assert choose_scale(CANDIDATES, pick, lambda rows: next(losses)).best.scale == CANDIDATES[1]
    with pytest.raises(DivergedError, match=r"each of the 3 sets .* \(eta=0.1 B=8, eta=0.5 B=8, e=2\)"):
        choose_scale(CANDIDATES, pick, lambda rows: math.inf)
    with pytest.raises(ValueError, match="give at least one candidate"):
        choose_scale([], pick, lambda rows: 0.0)


def test_picking_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; sys.modules['sklearn'] = None; "
    code += "import ostlight.selection.set_objective"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
