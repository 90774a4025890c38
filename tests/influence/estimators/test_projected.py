"""Projected utilities against the definition, where they must be it and where they only come near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ostlight
from ostlight.influence.agreement import rank_agreement
from ostlight.influence.estimators import projected as module
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.gradients import curvature_correction as bends
from ostlight.influence.gradients import responses
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors
from ostlight.selection.notes import read_notes
from ostlight.selection.scores import Scores, read_score_table
from ostlight.training.optimizer_records import warmup_adam_preconditioner

pytestmark = pytest.mark.usefixtures("few_samples_compared")


def scorer_of(model: Any, anchors: list[Any], snapshots: list[Any], scope: str, eta: float, count: int, **more: Any):
    names = [s.tags["task"] for s in anchors] if more.pop("groups", False) else [""] * len(anchors)
    made = make_anchors(model, anchors, names, 200)
    parameters = select_parameters(model.model, scope)
    step = SimulatedStep(model.model, parameters, made, eta)
    return Projected(step, model.batches(snapshots, 1), count, VectorSettings(**more)), parameters, made


@pytest.mark.parametrize("groups", [False, True])
def test_where_the_network_is_linear_in_the_scope_it_is_the_definition(proxy, samples, monkeypatch, groups: bool):
    """Logits are linear in the head's weights, and the samples scored are among those that were stepped on."""
    monkeypatch.setattr(responses, "LIKELIEST", 10_000)
    monkeypatch.setattr(responses, "SMALLEST_SHARE", 1e-12)
    model, pool = proxy("float64"), samples("pool")[:8]
    scorer, parameters, anchors = scorer_of(model, samples("anchors"), pool, "head", 3.0, 8, groups=groups)
    (batch,) = model.batches(pool, 10_000)
    found = scorer.columns(batch)
    definition = Exact(SimulatedStep(model.model, parameters, anchors, 3.0)).columns(batch)
    assert found["score"].tolist() == pytest.approx(definition["score"], rel=1e-6)
    if groups:
        by_group = torch.tensor(definition["utility_by_group"], dtype=torch.float64)
        assert torch.allclose(found["utility_by_group"], by_group, rtol=1e-6)
    # A step this long is no parabola.
    second = SecondOrder(SimulatedStep(model.model, parameters, anchors, 3.0), 16).columns(batch)["score"]
    assert (second - torch.tensor(definition["score"])).abs().median() > 0.1 * second.abs().median()


def test_what_lies_outside_the_directions_still_counts_to_first_order(proxy, samples):
    model, pool = proxy("float64"), samples("pool")
    eta = 1e-5  # in shorter ones the float32 of the models' norms is what bends
    scorer, parameters, anchors = scorer_of(model, samples("anchors"), pool[:2], "blocks", eta, 1)
    (batch,) = model.batches(pool[10:16], 10_000)
    found = scorer.columns(batch)
    assert found["score"].tolist() == pytest.approx((eta * found["alignment"]).tolist(), rel=0.05)
    expected = SecondOrder(SimulatedStep(model.model, parameters, anchors, eta)).columns(batch)
    for name in ("alignment", "cosine", "loss", "gradient_norm"):
        assert torch.allclose(torch.as_tensor(found[name]), torch.as_tensor(expected[name]), rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_it_ranks_like_the_definition_where_a_parabola_does_not(proxy, samples, tmp_path: Path, optimizer: str):
    model = proxy("float32")
    parameters = select_parameters(model.model, "blocks")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    preconditioner = (
        warmup_adam_preconditioner(tmp_path, model.model, parameters, anchors)[0] if optimizer == "adam" else None
    )
    eta = 0.001 if preconditioner is None else 2e-5
    singles = model.batches(samples("pool"), 1)
    step = SimulatedStep(model.model, parameters, anchors, eta, preconditioner)
    ours = Projected(step, singles[:24], 12)
    agreements = [rank_agreement(step, estimator, singles[24:]).spearman for estimator in (ours, SecondOrder(step, 64))]
    assert agreements[0] > 0.9
    assert agreements[0] > agreements[1]


def test_half_weights_are_measured_in_full_precision(proxy, samples):
    anchors, pool = samples("anchors"), samples("pool")
    tables = []
    for dtype in ("float32", "bfloat16"):
        model = proxy(dtype)
        scorer, _, _ = scorer_of(model, anchors, pool[:16], "blocks", 0.01, 8)
        (batch,) = model.batches(pool[16:40], 100_000)
        tables.append(scorer.columns(batch)["score"])
        assert next(model.parameters()).dtype == getattr(torch, dtype)
    assert torch.corrcoef(torch.stack(tables))[0, 1] > 0.95


def test_steps_and_vectors_are_kept_with_the_proxy(proxy, samples, tmp_path: Path, monkeypatch):
    model, pool = proxy("float32"), samples("pool")
    counts = [0]
    plain = module.measure_responses

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[0] += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "measure_responses", counted)
    (batch,) = model.batches(pool[20:24], 10_000)
    arguments = (model, samples("anchors"), pool[:8], "blocks")
    first = scorer_of(*arguments, 0.05, 4, cache=tmp_path)[0].columns(batch)
    again = scorer_of(*arguments, 0.05, 4, cache=tmp_path)[0].columns(batch)
    assert counts == [1]
    assert torch.allclose(first["score"], again["score"], rtol=1e-5)
    scorer_of(*arguments, 0.06, 4, cache=tmp_path)
    scorer_of(model, samples("anchors"), pool[1:9], "blocks", 0.05, 4, cache=tmp_path)
    assert counts == [3]


def test_it_is_what_the_ranking_goes_by_unless_another_is_named(settings):
    options = {"selection": "top", "rank": 6, "step_size": 0.05}
    selection = ostlight.select(settings(selector={"name": "ost", "options": options}))
    scores = Scores(read_score_table(selection.folder.scores))
    assert scores.column("phi").shape[1] == 6
    assert read_notes(selection.folder.path / "selector")["rank_agreement"]["estimator"] == "projected"


def test_steps_that_were_measured_are_told_as_the_definition_has_them(proxy, samples, monkeypatch):
    """As many directions as steps, and nothing taken for noise."""
    monkeypatch.setattr(bends, "NOISE", 1e-9)
    monkeypatch.setattr(responses, "LIKELIEST", 10_000)
    monkeypatch.setattr(responses, "SMALLEST_SHARE", 1e-12)
    monkeypatch.setattr(responses, "DEVIATION_SHARE", 1.0)
    monkeypatch.setattr(responses, "SHIFT", 1e-2)
    model, pool = proxy("float64"), samples("pool")[:6]
    scorer, parameters, anchors = scorer_of(model, samples("anchors"), pool, "blocks", 0.02, 6, groups=True)
    (batch,) = model.batches(pool, 10_000)
    definition = Exact(SimulatedStep(model.model, parameters, anchors, 0.02)).columns(batch)
    found = scorer.columns(batch)
    assert found["score"].tolist() == pytest.approx(definition["score"], rel=1e-2)
    by_group = torch.tensor(definition["utility_by_group"], dtype=torch.float64)
    assert (found["utility_by_group"] - by_group).norm() < 0.02 * by_group.norm()
    slopes, phi = scorer.split(scorer.products(batch).dots)
    straight = 0.02 * (slopes - phi @ scorer.inside.T) + scorer.responses.loss_decrease(phi, 0.02)
    order = [list(scorer.sizes).index(name) for name in scorer.names]
    assert (straight[:, order] - by_group).norm() > 0.1 * by_group.norm()
