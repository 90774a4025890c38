"""`exact` against a loop written by hand, and its limit against `first_order`."""

from __future__ import annotations

import copy

import pytest
import torch

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors

SCOPES = ["blocks", "last:1", "head", "all", r"mlp\.down_proj"]


def anchor_set(model, samples, by_task: bool = False, tokens_per_batch: int = 256) -> Anchors:
    anchors = samples("anchors")
    groups = [s.tags["task"] if by_task else "" for s in anchors]
    return make_anchors(model, anchors, groups, tokens_per_batch)


def by_hand(model, scope: str, sample, anchors, eta: float) -> float:
    """The definition, on a copy of the model, one anchor after the other."""

    def loss(m, s):
        return m.losses(m.collator.batch([s], [m.encoder.encode(s)]))[0]

    stepped = copy.deepcopy(model).requires_grad_(True)
    named = dict(stepped.model.named_parameters())
    wanted = select_parameters(stepped.model, scope)
    gradients = torch.autograd.grad(loss(stepped, sample), list(wanted.values()), allow_unused=True)
    with torch.no_grad():
        before = sum(float(loss(model, a)) for a in anchors) / len(anchors)
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                named[name] -= eta * gradient
        after = sum(float(loss(stepped, a)) for a in anchors) / len(anchors)
    return before - after


def test_mixed_precision_does_not_round_the_step_away(proxy, samples):
    model = proxy("float32")
    exact = Exact(
        SimulatedStep(model.model, select_parameters(model.model, "blocks"), anchor_set(model, samples), 0.05)
    )
    (batch,) = model.batches(samples("pool")[:4], 10_000)
    plain = exact.columns(batch)["score"]
    with torch.autocast("cpu", torch.bfloat16):
        assert exact.columns(batch)["score"] == plain


@pytest.mark.parametrize("scope", SCOPES)
def test_exact_is_the_definition(proxy, samples, scope: str):
    model = proxy("float64")
    exact = Exact(SimulatedStep(model.model, select_parameters(model.model, scope), anchor_set(model, samples), 0.05))
    for single, sample in zip(
        model.batches(samples("pool")[:3], 1), sorted_by_length(model, samples("pool")[:3]), strict=True
    ):
        expected = by_hand(model, scope, sample, samples("anchors"), 0.05)
        assert exact.one(single)["score"] == pytest.approx(expected, rel=1e-6)


def sorted_by_length(model, chosen):
    return sorted(chosen, key=lambda s: len(model.encoder.encode(s)))


def test_weights_are_put_back_bit_for_bit(proxy, samples):
    model = proxy("float32")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    exact = Exact(SimulatedStep(model.model, select_parameters(model.model, "all"), anchor_set(model, samples), 0.3))
    for single in model.batches(samples("pool")[:4], 1):
        exact.one(single)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_weights_are_put_back_when_the_anchors_fail(proxy, samples, monkeypatch):
    model = proxy("float32")
    exact = Exact(SimulatedStep(model.model, select_parameters(model.model, "all"), anchor_set(model, samples), 0.3))
    before = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(Anchors, "losses", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        exact.one(model.batches(samples("pool")[:1], 1)[0])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_exact_tends_to_first_order_as_eta_goes_to_zero(proxy, samples):
    model = proxy("float64")
    parameters = select_parameters(model.model, "blocks")
    anchors = anchor_set(model, samples)
    singles = model.batches(samples("pool")[:4], 1)
    first_order = SecondOrder(SimulatedStep(model.model, parameters, anchors, 1.0))
    slopes = [float(first_order.columns(s)["score"][0]) for s in singles]
    errors = []
    for eta in (1e-4, 1e-5):
        exact = [Exact(SimulatedStep(model.model, parameters, anchors, eta)).one(s)["score"] / eta for s in singles]
        errors.append(max(abs(e - s) / abs(s) for e, s in zip(exact, slopes, strict=True)))
    assert errors[1] < 1e-2
    # The difference is curvature, of first order in eta: ten times smaller a step, ten times smaller an error.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.5)


@pytest.mark.parametrize("estimator", [Exact, SecondOrder])
def test_group_utilities_average_to_the_whole(proxy, samples, estimator):
    model = proxy("float64")
    anchors = anchor_set(model, samples, by_task=True)
    assert len(anchors.names) == 7
    scorer = estimator(SimulatedStep(model.model, select_parameters(model.model, "blocks"), anchors, 0.05))
    row = {name: values[0] for name, values in scorer.columns(model.batches(samples("pool")[:1], 1)[0]).items()}
    # 14 anchors, two a task: the mean over tasks is the mean over anchors. The model's norm layers round to float32
    # whatever its dtype, and the backward passes of the groups round apart.
    assert float(sum(row["utility_by_group"])) / 7 == pytest.approx(float(row["score"]), rel=1e-7)


def test_half_precision_weights_are_refused(proxy, samples):
    model = proxy("bfloat16")
    with pytest.raises(InfluenceError, match="exact takes float32 or float64 weights; .* is torch.bfloat16"):
        Exact(SimulatedStep(model.model, select_parameters(model.model, "blocks"), anchor_set(model, samples), 0.1))


def test_a_loss_that_is_no_number_is_a_bad_record(proxy, samples):
    model = proxy("float32")
    exact = Exact(SimulatedStep(model.model, select_parameters(model.model, "blocks"), anchor_set(model, samples), 0.1))
    single = model.batches(samples("pool")[:1], 1)[0]
    single.inputs["pixel_values"][:] = float("nan")
    with pytest.raises(BadRecord, match="loss_not_finite"):
        exact.one(single)
