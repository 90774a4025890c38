"""The closed form for a linear head against the step taken in full."""

from __future__ import annotations

import pytest
import torch

from ostlight.gradients.scope import scoped_parameters
from ostlight.utility.anchors import AnchorSet
from ostlight.utility.exact import Exact
from ostlight.utility.exact_head import ExactHead, untied_linear_head
from ostlight.utility.step import Step


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-3)])
def test_it_is_exact(proxy, samples, dtype: str, bound: float):
    model = proxy(dtype)
    parameters = scoped_parameters(model.model, "head")
    head = untied_linear_head(model, parameters)
    assert head is not None
    anchors = AnchorSet.make(model, samples("anchors"), [s.tags["task"] for s in samples("anchors")], 200)
    batch = model.batches(samples("pool")[:6], 10_000)[0]
    fast = ExactHead(Step(model, parameters, anchors, 0.3), head).columns(batch)
    slow = Exact(Step(model, parameters, anchors, 0.3)).columns(batch)
    for name in ("score", "loss", "grad_norm", "utility_by_group"):
        found = torch.as_tensor(fast[name]).double()
        expected = torch.tensor(slow[name], dtype=torch.float64)
        assert float((found - expected).abs().max() / expected.abs().median()) < bound, name


def test_other_scopes_take_the_general_path(proxy):
    model = proxy("float32")
    assert untied_linear_head(model, scoped_parameters(model.model, "blocks")) is None
    assert untied_linear_head(model, scoped_parameters(model.model, "all")) is None
    model.model.set_output_embeddings(torch.nn.Linear(1, 1))
    head = model.model.get_output_embeddings()
    model.model.get_input_embeddings().weight = head.weight
    assert untied_linear_head(model, {"lm_head.weight": head.weight}) is None


def test_a_sample_without_a_finite_loss_is_told(proxy, samples):
    model = proxy("float32")
    parameters = scoped_parameters(model.model, "head")
    anchors = AnchorSet.make(model, samples("anchors"), [""] * 14, 10_000)
    head = untied_linear_head(model, parameters)
    assert head is not None
    batch = model.batches(samples("pool")[:3], 10_000)[0]
    batch.inputs["pixel_values"][1] = float("nan")
    failures = ExactHead(Step(model, parameters, anchors, 0.3), head).columns(batch)["failure"]
    assert [f is not None for f in failures] == [False, True, False]
