"""Measured steps against Jacobians and matrices written out, on a model small enough to have them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_probes import IDS, PROMPT, Bigram, anchors_of, flat, gauss_newton
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ostlight.errors import InfluenceError
from ostlight.influence.gradients import responses as module
from ostlight.influence.gradients.probes import Vectors, mean_gradients
from ostlight.influence.gradients.responses import StepResponses, measure_responses

EVERYONE, ETA = range(5), 0.05


def steps_of(model: nn.Module, count: int, seed: int = 0) -> list[Vectors]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(count)
    ]


def read(model: nn.Module, steps: Sequence[Vectors], count: int, groups: list[str] | None = None) -> StepResponses:
    anchors = anchors_of(model, [[0, 1, 2], [3, 4]], groups)
    return measure_responses(model, anchors, dict(model.named_parameters()), lambda: steps, ETA, count)


def coordinates(
    model: nn.Module, found: StepResponses, steps: Sequence[Vectors], groups: list[str] | None = None
) -> Tensor:
    anchors, parameters = anchors_of(model, [[0, 1, 2], [3, 4]], groups), dict(model.named_parameters())
    fixed = flat(found.vectors(model, anchors, parameters, range(len(found.directions))), 1)
    return torch.stack([flat(step) for step in steps]) @ fixed.T


def test_within_the_measured_steps_the_squared_coordinates_are_the_gauss_newton_curvature() -> None:
    model = Bigram()
    steps = steps_of(model, 6)
    phi = coordinates(model, read(model, steps, 6), steps)
    directions = torch.stack([flat(step) for step in steps])
    expected = torch.einsum("sp,pq,sq->s", directions, gauss_newton(model, EVERYONE), directions)
    # The shift along a step of norm 6 is short, not infinitely short.
    assert torch.allclose(phi.square().sum(1), expected, rtol=1e-3)


def test_more_directions_than_answer_tokens_are_refused() -> None:
    model = Bigram()
    expected = r"18 directions from 17 answer tokens of 5 anchors: add anchors, or ask for fewer"
    with pytest.raises(InfluenceError, match=expected):
        read(model, steps_of(model, 2), 18)


def test_outside_them_part_of_the_curvature_is_seen_and_more_with_more_directions() -> None:
    model = Bigram()
    steps, others = steps_of(model, 12), steps_of(model, 8, seed=1)
    directions = torch.stack([flat(step) for step in others])
    whole = torch.einsum("sp,pq,sq->s", directions, gauss_newton(model, EVERYONE), directions)
    shares = [
        coordinates(model, read(model, steps[: 2 * count], count), others).square().sum(1) / whole
        for count in (1, 3, 6)
    ]
    assert all(bool((share < 1 + 1e-3).all()) for share in shares)
    assert shares[0].mean() < shares[1].mean() < shares[2].mean()


@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "b", "a"]])
def test_the_fall_is_that_of_a_network_linear_in_its_weights(groups: list[str] | None) -> None:
    """At a step so long that a parabola is far off."""
    model, eta, small = Bigram(), 3.0, 1e-6
    sizes = anchors_of(model, [[0, 1, 2], [3, 4]], groups).sizes
    steps = steps_of(model, 4)
    found = read(model, steps, 4, groups)
    phi = coordinates(model, found, steps, groups)
    for row, step in enumerate(steps):
        here, there = every_logit(model), every_logit(shifted(model, step, small))
        decreases = dict.fromkeys(sizes, 0.0)
        for index, (start, end) in enumerate(zip(here, there, strict=True)):
            labels = torch.tensor(IDS[index][PROMPT[index] :])
            moved = start - eta * (end - start) / small
            group = groups[index] if groups else "all"
            decreases[group] += float(cross_entropy(start, labels) - cross_entropy(moved, labels)) / sizes[group]
        assert found.loss_decrease(phi[row : row + 1], eta)[0].tolist() == pytest.approx(
            list(decreases.values()), rel=2e-3
        )
    slopes, curvatures = phi @ found.loss_gradients.mean(0), phi.square().sum(1)
    parabola, whole = eta * slopes - eta**2 / 2 * curvatures, found.loss_decrease(phi, eta).mean(1)
    assert (parabola - whole).abs().median() > 0.1 * whole.abs().median()


def test_the_bend_leads_to_where_the_step_really_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is measured, at a length where the network is far from linear in its weights."""
    monkeypatch.setattr(module, "SHIFT", 1e-3)
    model = Bigram()
    steps = [{n: 8 * v for n, v in step.items()} for step in steps_of(model, 4)]
    found = read(model, steps, 8)
    phi = coordinates(model, found, steps)
    straight, really = found.loss_decrease(phi, ETA).mean(1), found.loss_decrease(phi, ETA, found.deviations).mean(1)
    here = torch.stack([cross_entropy(z, torch.tensor(IDS[i][PROMPT[i] :])) for i, z in enumerate(every_logit(model))])
    for row, step in enumerate(steps):
        there = every_logit(shifted(model, step, -ETA))
        losses = [cross_entropy(z, torch.tensor(IDS[i][PROMPT[i] :])) for i, z in enumerate(there)]
        assert float(really[row]) == pytest.approx(float((here - torch.stack(losses)).mean()), rel=1e-4)
    assert (straight - really).abs().max() > 0.1 * really.abs().max()


def every_logit(model: nn.Module) -> list[Tensor]:
    """Of each anchor's answer tokens."""
    with torch.no_grad():
        return [model(torch.tensor([IDS[i]]))[0, PROMPT[i] - 1 : -1] for i in EVERYONE]


def shifted(model: nn.Module, step: Vectors, size: float) -> nn.Module:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.add_(step[name], alpha=size)
    return moved


def test_words_told_together_keep_slope_and_most_of_the_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIKELIEST", 2)
    model = Bigram()
    parameters, steps = dict(model.named_parameters()), steps_of(model, 4)
    found = read(model, steps, 4)
    assert found.token_ids.shape[1] == 3
    assert found.logits.shape[1] == 4
    assert torch.allclose(found.logits.softmax(-1).sum(-1), torch.ones(len(found.logits), dtype=torch.float64))
    phi = coordinates(model, found, steps)
    mean = flat(mean_gradients(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters)["all"])
    along = torch.stack([flat(step) for step in steps]) @ mean
    assert torch.allclose(phi @ found.loss_gradients[0], along, rtol=1e-3, atol=1e-4)
    directions = torch.stack([flat(step) for step in steps])
    whole = torch.einsum("sp,pq,sq->s", directions, gauss_newton(model, EVERYONE), directions)
    share = phi.square().sum(1) / whole
    assert 0.5 < float(share.min()) < float(share.max()) < 1 + 1e-3


def test_weights_are_put_back_to_the_bit_and_fewer_directions_than_asked_are_zero() -> None:
    model = Bigram()
    before = [p.detach().clone() for p in model.parameters()]
    steps = steps_of(model, 2)
    found = read(model, [*steps, {name: 2 * v for name, v in steps[0].items()}], 5)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert [bool(direction.any()) for direction in found.directions] == [True, True, False, False, False]


def test_a_step_that_leads_nowhere_is_left_out_and_none_at_all_is_refused() -> None:
    model = Bigram()
    good, zero = steps_of(model, 1)[0], {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    found = read(model, [zero, good], 2)
    assert [bool(direction.any()) for direction in found.directions] == [True, False]
    with pytest.raises(InfluenceError, match="no sample of the pool gives a gradient to step along"):
        read(model, [zero], 2)
