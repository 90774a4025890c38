"""A proxy whose loss is not per sample is refused before it scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ostlight
from ostlight.errors import InfluenceError
from ostlight.influence import batch_invariance
from ostlight.influence.batch_invariance import check_batch_invariance
from ostlight.models import influence_task
from ostlight.models.influence_task import make_anchors

pytestmark = pytest.mark.usefixtures("few_samples_compared")


def mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation, as far as a batch of logits can show it."""
    plain = influence_task.answer_logits

    def mixed(model, batch):
        logits, labels = plain(model, batch)
        return (logits - logits.mean(0, keepdim=True) if len(batch) > 1 else logits), labels

    monkeypatch.setattr(influence_task, "answer_logits", mixed)


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-6), ("float32", 1e-5), ("bfloat16", 0.05)])
def test_real_proxies_pass(proxy, samples, dtype: str, bar: float):
    model = proxy(dtype)
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 10_000)
    assert check_batch_invariance(model.model, anchors) <= bar


@pytest.mark.parametrize("estimator", ["exact", "first_order", "second_order", "projected"])
def test_logits_that_mix_samples_are_named(settings, monkeypatch, estimator: str):
    mix(monkeypatch)
    ost = options_of(estimator)
    with pytest.raises(
        InfluenceError, match=r"loss is not per sample: anchor '.*' has the loss .* alone and .* beside 3"
    ):
        ostlight.select(settings(selector=ost))


def test_a_group_of_one_anchor_is_named(proxy, samples, logged):
    model, anchors = proxy("float32"), samples("anchors")
    assert make_anchors(model, anchors, ["a"] * 6 + ["b"] * 7 + ["c"], 10_000).sizes == {"a": 6, "b": 7, "c": 1}
    assert "a single anchor is in 'c'" in logged()
    make_anchors(model, anchors, [str(k) for k in range(14)], 10_000)
    assert "single" not in logged()


@pytest.mark.parametrize(
    "estimator",
    ["projected", *(pytest.param(e, marks=pytest.mark.slow) for e in ("exact", "first_order", "second_order"))],
)
def test_gradients_that_are_no_numbers_are_set_aside_with_their_layer(settings, samples, monkeypatch, estimator: str):
    broken = samples("pool")[5].id
    break_gradients(monkeypatch, broken)
    ost = options_of(estimator)
    selection = ostlight.select(settings(selector=ost))
    assert selection.rejected == {"gradient_not_finite": 1}
    table = ostlight.selection.scores.read_score_table(selection.folder.scores).to_pylist()
    (row,) = [r for r in table if r["state"] == "rejected"]
    assert row["id"] == broken
    assert "layers.0" in row["detail"]
    assert row["score"] is None


@pytest.mark.parametrize("estimator", ["first_order", "second_order", "projected"])
def test_an_anchor_whose_gradient_is_no_number_is_named(settings, samples, monkeypatch, estimator: str):
    broken = samples("anchors")[5].id
    break_gradients(monkeypatch, broken)
    ost = options_of(estimator)
    with pytest.raises(
        InfluenceError,
        match=rf"anchor '{broken}': gradient_not_finite: the gradient of .*layers\.0.* holds NaN or infinity",
    ):
        ostlight.select(settings(selector=ost))


def options_of(estimator: str) -> dict[str, Any]:
    count = {"projected": {"rank": 2}, "second_order": {"probes": 2}}.get(estimator, {})
    return {"name": "ost", "options": {"estimator": estimator, "step_size": 0.1} | count}


def break_gradients(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """One sample's gradient becomes infinite in the backward pass, at the middle layer, its loss staying finite."""
    plain = influence_task.answer_logits

    def poisoned(model, batch):
        rows = torch.tensor([s.id == broken for s in batch.samples])

        def poison(module, args, result):
            hidden = result[0] if isinstance(result, tuple) else result
            if hidden.requires_grad and bool(rows.any()):
                hidden.register_hook(lambda g: torch.where(rows[:, None, None], torch.inf, g))

        block = model.get_decoder().layers[0]
        handle = block.register_forward_hook(poison)
        try:
            return plain(model, batch)
        finally:
            handle.remove()

    monkeypatch.setattr(influence_task, "answer_logits", poisoned)


def test_mixed_precision_may_round_as_much_as_half_precision(proxy, samples):
    model = proxy("float32")
    anchors = make_anchors(model, samples("anchors"), [""] * len(samples("anchors")), 4096)
    with torch.autocast("cpu", torch.bfloat16):
        assert check_batch_invariance(model.model, anchors) < 0.05
        assert batch_invariance.ALLOWED[batch_invariance._computed_in(model.model)] == 0.05
    assert batch_invariance.ALLOWED[batch_invariance._computed_in(model.model)] == 1e-3
