"""No estimator's score depends on who shares the batch: its size, padding, order, or the batching of the anchors.

Measured as the largest deviation over the column's median absolute score, on DigitMath's proxy; other families are in
``tests/gradients/test_family_invariance.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.exact_head import ExactHead, untied_linear_head
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors
from ostlight.training.optimizer_records import warmup_adam_preconditioner

SAMPLES = 12
BOUNDS = {"float64": 1e-9, "float32": 1e-3}
ADAM_ETA = {"float64": 1e-5, "float32": 1e-4}
"""A fifth of the demo's warm-up is what float32 needs: a bend is a difference of logits, so that rounding counts the
more the shorter the step."""
ARRANGEMENTS = (("right", 12, 0), ("left", 12, 1), ("right", 5, 2), ("left", 5, 3), ("left", 1, 4))
"""Padding side, batch size, seed of the order."""

Make = Callable[..., Any]


def exact_head(step: SimulatedStep, tried: Any) -> ExactHead:
    head = untied_linear_head(step.model, step.parameters)
    assert head is not None
    return ExactHead(step, head)


ESTIMATORS: dict[str, Make] = {
    "exact": lambda step, tried: Exact(step),
    "exact_head": exact_head,
    "first_order": lambda step, tried: SecondOrder(step),
    "second_order": lambda step, tried: SecondOrder(step, 4),
    "projected": lambda step, tried: Projected(step, tried, 4),
    "forward_only": lambda step, tried: FiniteDifference(step, tried),
}
CASES = [
    *((name, "sgd") for name in ESTIMATORS if name != "exact"),
    pytest.param("exact", "sgd", marks=pytest.mark.slow),
    *(pytest.param(n, "adam", marks=pytest.mark.slow) for n in ESTIMATORS if n != "exact_head"),
]
"""``exact_head`` knows plain steps alone."""


def deviation(proxy: Make, samples: Make, name: str, optimizer: str, dtype: str, folder: Path) -> float:
    model, trusted = proxy(dtype), samples("anchors")
    pool = samples("pool")[:SAMPLES]
    encoded = [model.encoder.encode(s) for s in pool]
    parameters = select_parameters(model.model, "head" if name == "exact_head" else "blocks")
    eta = 0.05 if optimizer == "sgd" else ADAM_ETA[dtype]
    tables = []
    for side, size, seed in ARRANGEMENTS:
        model.collator.side = side
        # The anchors are batched as differently as the candidates.
        anchors = make_anchors(model, trusted, [""] * len(trusted), tokens_per_batch=64 * size)
        preconditioner = (
            warmup_adam_preconditioner(folder, model.model, parameters, anchors)[0] if optimizer == "adam" else None
        )
        tried = [model.collator.batch([pool[i]], [encoded[i]]) for i in range(4)]
        scorer = ESTIMATORS[name](SimulatedStep(model.model, parameters, anchors, eta, preconditioner), tried)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed)).tolist()
        found = torch.empty(SAMPLES, dtype=torch.float64)
        for start in range(0, SAMPLES, size):
            rows = order[start : start + size]
            batch = model.collator.batch([pool[i] for i in rows], [encoded[i] for i in rows])
            found[rows] = torch.as_tensor(scorer.columns(batch)["score"], dtype=torch.float64)
        tables.append(found)
    worst = torch.stack([(other - tables[0]).abs().max() for other in tables[1:]]).max()
    return float(worst / tables[0].abs().median())


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_scores_do_not_depend_on_batch_padding_or_order(
    proxy: Make, samples: Make, tmp_path: Path, name: str, optimizer: str, dtype: str
) -> None:
    assert deviation(proxy, samples, name, optimizer, dtype, tmp_path) <= BOUNDS[dtype]
