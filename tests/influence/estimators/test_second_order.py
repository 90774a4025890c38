"""First and second order against sums written by hand, Adam-shaped steps, and the run's own rank agreement."""

from __future__ import annotations

import pytest
import torch

from ostlight.errors import InfluenceError
from ostlight.influence.agreement import RankAgreement, rank_agreement, sample_count
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import dot, sample_gradient
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.training.loss_monitor import mean_loss
from ostlight.training.optimizer_records import warmup_adam_preconditioner


@pytest.fixture
def setup(proxy, samples):
    model = proxy("float64")
    anchors = make_anchors(model, samples("anchors"), [s.tags["task"] for s in samples("anchors")], 200)
    return model, select_parameters(model.model, "blocks"), anchors


def anchor_gradient(model, parameters, anchors):
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    singles = [s for batch in anchors.batches for s in batch.singles()]
    for single in singles:
        for name, g in sample_gradient(model.model, SampleTask(), parameters, single)[1].items():
            total[name] += g / len(singles)
    return total


def test_the_slope_is_the_inner_product(setup, samples):
    model, parameters, anchors = setup
    batch = model.batches(samples("pool")[:5], 10_000)[0]
    columns = SecondOrder(SimulatedStep(model.model, parameters, anchors, 0.5)).columns(batch)
    target = anchor_gradient(model, parameters, anchors)
    for k, single in enumerate(batch.singles()):
        loss, gradient = sample_gradient(model.model, SampleTask(), parameters, single)
        slope = float(dot(gradient, target))
        assert float(columns["alignment"][k]) == pytest.approx(slope, rel=1e-6)
        assert float(columns["score"][k]) == pytest.approx(0.5 * slope, rel=1e-6)
        assert float(columns["loss"][k]) == pytest.approx(float(loss), rel=1e-9)
        length = float(dot(gradient, gradient)) ** 0.5
        assert float(columns["gradient_norm"][k]) == pytest.approx(length, rel=1e-6)
        assert float(columns["cosine"][k]) == pytest.approx(
            slope / length / float(dot(target, target)) ** 0.5, rel=1e-6
        )


def test_the_curvature_comes_off_the_slope(setup, samples):
    model, parameters, anchors = setup
    batch = model.batches(samples("pool")[:5], 10_000)[0]
    columns = SecondOrder(SimulatedStep(model.model, parameters, anchors, 0.5), num_probes=3).columns(batch)
    # Seven groups of three probes each: the pooled sketch has all of them.
    assert columns["phi"].shape == (5, 21)
    assert columns["utility_by_group"].shape == (5, 7)
    expected = 0.5 * columns["alignment"] - 0.125 * columns["phi"].double().square().sum(1)
    assert torch.allclose(columns["score"], expected, rtol=1e-5)


def test_small_steps_rank_as_exact_does(proxy, samples):
    model = proxy("float32")
    parameters = select_parameters(model.model, "blocks")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    singles = model.batches(samples("pool")[:30], 1)
    for probes in (0, 16):
        sketched = SecondOrder(SimulatedStep(model.model, parameters, anchors, 2e-4), num_probes=probes)
        found = rank_agreement(SimulatedStep(model.model, parameters, anchors, 2e-4), sketched, singles)
        assert found.samples == 30
        assert found.spearman > 0.95


def test_agreement_is_told_and_warns():
    assert "0.95 (Spearman, 30 samples)" in RankAgreement(0.95, 30).summary("second_order")
    assert "estimator projected or exact" in RankAgreement(0.3, 30).summary("second_order")
    assert "rely on its sign" in RankAgreement(0.3, 30).summary("finite_difference")
    assert "30 samples, which it was made from" in RankAgreement(0.95, 30, seen=True).summary("projected")
    assert "not measurable" in RankAgreement(float("nan"), 0).summary("first_order")
    assert [sample_count(n) for n in (10, 3000, 10**6)] == [16, 30, 64]


def test_adam_without_warm_up_takes_the_anchors_second_moments(setup, samples, tmp_path):
    model, parameters, anchors = setup
    preconditioner, source = warmup_adam_preconditioner(tmp_path, model.model, parameters, anchors)
    assert source == "the anchors' gradients: no step of a warm-up was kept"
    singles = [s for batch in anchors.batches for s in batch.singles()]
    name = next(iter(parameters))
    squares = [
        sample_gradient(model.model, SampleTask(), {name: parameters[name]}, s)[1][name].float() ** 2 for s in singles
    ]
    expected = 1 / (torch.stack(squares).mean(0).sqrt() + 1e-8)
    assert torch.allclose(preconditioner.blocks[name].inverse, expected, rtol=1e-4)


def test_an_adam_step_is_the_scaled_step(setup, samples, tmp_path):
    model, parameters, anchors = setup
    preconditioner, _ = warmup_adam_preconditioner(tmp_path, model.model, parameters, anchors)
    (single,) = model.batches(samples("pool")[:1], 1)
    _, gradient = sample_gradient(model.model, SampleTask(), parameters, single)
    before = mean_loss(model, anchors.batches)
    found = Exact(SimulatedStep(model.model, parameters, anchors, 1e-5, preconditioner)).one(single)["score"]
    kept = [p.detach().clone() for p in parameters.values()]
    with torch.no_grad():
        for name, p in parameters.items():
            p -= 1e-5 * preconditioner.apply(name, gradient[name])
    after = mean_loss(model, anchors.batches)
    assert found == pytest.approx(before - after, rel=1e-6)
    with torch.no_grad():
        for p, k in zip(parameters.values(), kept, strict=True):
            p.copy_(k)
    slope = SecondOrder(SimulatedStep(model.model, parameters, anchors, 1.0, preconditioner)).columns(single)[
        "alignment"
    ]
    by_hand = {name: preconditioner.apply(name, g) for name, g in gradient.items()}
    assert float(slope[0]) == pytest.approx(float(dot(by_hand, anchor_gradient(model, parameters, anchors))), rel=1e-5)


def test_too_few_anchors_for_the_probes(proxy, samples):
    model = proxy("float32")
    anchors = make_anchors(model, samples("anchors")[:2], ["", ""], 10_000)
    with pytest.raises(InfluenceError, match=r"999 probes from \d+ answer tokens of 2 anchors: add anchors"):
        SecondOrder(SimulatedStep(model.model, select_parameters(model.model, "last:1"), anchors, 0.1), num_probes=999)
