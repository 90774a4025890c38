"""First order from two forward passes says what first order from a backward pass says, and how far off it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ostlight
from ostlight.errors import ConfigError, InfluenceError
from ostlight.influence.estimators import finite_difference as forward_only
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors
from ostlight.selection.scores import Scores

pytestmark = pytest.mark.usefixtures("few_samples_compared")


# The model's norm layers round to float32 whatever its dtype, and a difference shows it.
@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-4), ("float32", 1e-2)])
def test_it_is_first_order_within_the_error_it_tells(proxy, samples, dtype: str, bar: float, logged):
    model = proxy(dtype)
    parameters = select_parameters(model.model, "blocks")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    forward = FiniteDifference(
        SimulatedStep(model.model, parameters, anchors, 0.1), model.batches(samples("pool")[:8], 1), VectorSettings()
    )
    batch = model.batches(samples("pool")[8:24], 10_000)[0]
    found = forward.columns(batch)
    expected = SecondOrder(SimulatedStep(model.model, parameters, anchors, 0.1)).columns(batch)
    off = (found["alignment"] - expected["alignment"]).square().mean().sqrt() / expected[
        "alignment"
    ].square().mean().sqrt()
    assert float(off) <= bar
    assert float(off) <= 10 * forward.relative_error + 1e-7
    assert torch.allclose(found["score"], 0.1 * found["alignment"])
    assert torch.allclose(found["loss"], expected["loss"], rtol=1e-3)
    assert f"its own error is about {forward.relative_error:.1g} of a product" in logged()
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_a_run_without_a_backward_pass(settings, logged):
    plain = {"estimator": "first_order", "step_size": 0.1}
    tables = [
        Scores.read(ostlight.select(settings(name=name, selector={"name": "ost", "options": options})).folder.scores)
        for name, options in (("with", plain), ("without", plain | {"estimator": "finite_difference"}))
    ]
    assert (abs(tables[0].score - tables[1].score)).max() <= 1e-2 * abs(tables[0].score).max()
    assert "phi" not in tables[1]
    out = logged()
    assert "first order from two forward passes: its own error is about" in out
    assert out.count("rank agreement of ") == 2


def test_what_makes_no_sense_is_refused(settings, digits, proxy, samples, monkeypatch):
    without = {"estimator": "finite_difference", "step_size": 0.1}
    with pytest.raises(ConfigError, match=r"vector_storage must be full with estimator=finite_difference"):
        ostlight.select(settings(selector={"name": "ost", "options": without | {"vector_storage": "bf16"}}))
    grouped = {"path": str(digits.anchors), "group": "task"}
    with pytest.raises(InfluenceError, match="two forward passes for each of the 7 anchor groups"):
        ostlight.select(settings(name="groups", selector={"name": "ost", "options": without}, anchors=grouped))
    half = settings(name="half", selector={"name": "ost", "options": without})
    half["proxy"] |= {"dtype": "bfloat16"}
    with pytest.raises(InfluenceError, match="lost in its rounding"):
        ostlight.select(half)
    mixed = settings(name="mixed", selector={"name": "ost", "options": without})
    mixed["compute"] |= {"precision": "bf16-mixed"}
    with pytest.raises(InfluenceError, match="under autocast"):
        ostlight.select(mixed)
    monkeypatch.setattr(forward_only, "LARGEST_ERROR", 0.0)
    model = proxy("float32")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    with pytest.raises(InfluenceError, match=r"above 0\.0: set estimator=first_order"):
        FiniteDifference(
            SimulatedStep(model.model, select_parameters(model.model, "last:1"), anchors, 0.1),
            model.batches(samples("pool")[:4], 1),
        )


def test_a_loss_that_is_no_number_is_told(proxy, samples, tmp_path: Path):
    model = proxy("float32")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    parameters = select_parameters(model.model, "last:1")
    forward = FiniteDifference(
        SimulatedStep(model.model, parameters, anchors, 0.1), model.batches(samples("pool")[:4], 1)
    )
    batch = model.batches(samples("pool")[:3], 10_000)[0]
    batch.inputs["pixel_values"][1] = float("nan")
    assert [f is not None for f in forward.columns(batch)["failure"]] == [False, True, False]
