from __future__ import annotations

from collections.abc import Hashable, Sequence

import pytest
import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.probes import Vectors, curvature_probes, mean_gradients
from ostlight.influence.gradients.seeded_random import signs, uniforms
from ostlight.influence.gradients.sketched_utility import pooled, sketches
from ostlight.influence.task import Task
from ostlight.models.losses import per_sample_losses

VOCAB, WIDTH = 5, 3
IDS = [[1, 2, 3, 4, 0, 1], [2, 2, 4, 1], [3, 1, 0, 2, 4], [4, 3, 3, 1, 2, 0, 1], [0, 4, 2, 2]]
PROMPT = [2, 1, 3, 2, 1]
"""Tokens of each anchor that are no answer."""


class Bigram(nn.Module):
    """Scores of the next token from this one alone: a sample's figures cannot depend on padding, wherever it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, WIDTH).double()
        self.head = nn.Linear(WIDTH, VOCAB).double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(ids)))


def anchors_of(
    model: nn.Module, batches: Sequence[Sequence[int]], groups: Sequence[Hashable] | None = None, left: bool = False
) -> Anchors:
    def padded(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        width = max(len(IDS[index]) for index in indices)
        ids, labels = [], []
        for index in indices:
            gap = [0] * (width - len(IDS[index]))
            label = [-100] * PROMPT[index] + IDS[index][PROMPT[index] :]
            nothing = [-100] * len(gap)
            ids.append(gap + IDS[index] if left else IDS[index] + gap)
            labels.append(nothing + label if left else label + nothing)
        return torch.tensor(ids), torch.tensor(labels)

    return Anchors([padded(indices) for indices in batches], Bigrams(), groups or ["all"] * len(IDS), batches)


class Bigrams(Task):
    def logits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids, labels = batch
        return model(ids)[:, :-1], labels[:, 1:]


def flat(vectors: Vectors, leading: int = 0) -> Tensor:
    return torch.cat([vector.flatten(leading) for vector in vectors.values()], dim=leading)


def gauss_newton(model: nn.Module, members: Sequence[int]) -> Tensor:
    """The explicit ``[P, P]`` matrix, one token's Jacobian at a time."""
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for index in members:
        answers = len(IDS[index]) - PROMPT[index]
        for position in range(PROMPT[index] - 1, len(IDS[index]) - 1):
            logits = model(torch.tensor([IDS[index]]))[0, position]
            rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in logits]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            p = torch.softmax(logits.detach(), 0)
            matrix += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / (len(members) * answers)
    return matrix


@pytest.mark.parametrize("groups", [pytest.param(None, marks=pytest.mark.slow), ["a", "b", "a", "b", "a"]])
def test_probes_estimate_the_gauss_newton_matrix_without_bias(groups: list[str] | None) -> None:
    """Every mean lies within 5 standard errors: a false alarm once in about 30,000 runs, and the seeds are fixed."""
    model = Bigram()
    parameters = dict(model.named_parameters())
    anchors = anchors_of(model, [[0, 1, 2], [3, 4]], groups)
    rounds = [curvature_probes(model, anchors, parameters, 6, seed) for seed in range(250)]
    torch.manual_seed(1)
    for group in anchors.sizes:
        members = [index for index, one in enumerate(anchors.groups) if one == group]
        exact = gauss_newton(model, members)
        probes = torch.cat([flat(one[group], 1) for one in rounds])
        directions = torch.randn(30, len(exact), dtype=torch.float64)
        squares = (probes @ directions.T).square()
        expected = torch.einsum("dp,pq,dq->d", directions, exact, directions)
        errors = squares.std(0) / len(squares) ** 0.5
        assert ((squares.mean(0) - expected).abs() <= 5 * errors).all()
        # The bound would be empty if the errors were wide: 1500 probes know the curvature to a tenth.
        assert (errors <= 0.1 * expected).all()
        means = probes.mean(0) / (probes.std(0) / len(probes) ** 0.5).clamp_min(1e-12)
        assert means.abs().max() <= 5


def test_probes_do_not_depend_on_batching_order_or_padding() -> None:
    model = Bigram()
    parameters = dict(model.named_parameters())
    whole = flat(curvature_probes(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters, 4, seed=3)["all"], 1)
    for batches, left in (([[4], [2], [0], [1], [3]], False), ([[3, 1], [4, 0, 2]], True)):
        again = flat(curvature_probes(model, anchors_of(model, batches, left=left), parameters, 4, seed=3)["all"], 1)
        assert (again - whole).abs().max() <= 1e-14
    other = flat(curvature_probes(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters, 4, seed=4)["all"], 1)
    assert (other - whole).abs().max() > 0.01
    fewer = flat(curvature_probes(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters, 2, seed=3)["all"], 1)
    assert (fewer - whole[:2]).abs().max() <= 1e-14
    some = curvature_probes(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters, 4, seed=3, only=range(1, 3))
    assert torch.equal(flat(some["all"], 1), whole[1:3])


def test_mean_gradients_are_the_gradients_of_the_mean_losses() -> None:
    model = Bigram()
    parameters = dict(model.named_parameters())
    groups = ["a", "b", "a", "b", "a"]
    got = mean_gradients(model, anchors_of(model, [[3, 0], [1, 2, 4]], groups), parameters)
    for group in ("a", "b"):
        members = [index for index, one in enumerate(groups) if one == group]
        losses = []
        for index in members:
            label = torch.tensor([[-100] * PROMPT[index] + IDS[index][PROMPT[index] :]])
            losses.append(per_sample_losses(model(torch.tensor([IDS[index]])), label)[0])
        expected = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
        assert (flat(got[group]) - torch.cat([g.flatten() for g in expected])).abs().max() <= 1e-15
    assert all(p.requires_grad for p in parameters.values())


def test_groups_pool_into_the_whole() -> None:
    """The slope exactly; the curvature as a matrix that is as unbiased as the groups' own."""
    model = Bigram()
    parameters = dict(model.named_parameters())
    groups = ["a", "b", "a", "b", "a"]
    anchors = anchors_of(model, [[0, 1, 2, 3, 4]], groups)
    means, probes = mean_gradients(model, anchors, parameters), curvature_probes(model, anchors, parameters, 3)
    fixed = torch.cat([part for g in means for part in (flat(means[g])[None], flat(probes[g], 1))])
    torch.manual_seed(2)
    sample = torch.randn(7, sum(p.numel() for p in parameters.values()), dtype=torch.float64)
    parts = sketches(sample @ fixed.T, anchors.sizes, 3)
    whole = pooled(parts, anchors.sizes)
    alone = flat(mean_gradients(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters)["all"])
    assert (whole.alignment - sample @ alone).abs().max() <= 1e-14
    assert whole.curvature.shape == (7, 6)
    expected = 0.6 * parts["a"].curvature.square().sum(1) + 0.4 * parts["b"].curvature.square().sum(1)
    assert (whole.curvature.square().sum(1) - expected).abs().max() <= 1e-13
    u = whole.second_order(0.5)
    assert torch.allclose(u, 0.5 * whole.alignment - 0.125 * expected, rtol=1e-12)


def test_draws_are_uniform_signs_are_fair_and_both_keep_their_place() -> None:
    anchors, tokens, probes = torch.arange(50)[:, None, None], torch.arange(40)[:, None], torch.arange(16)
    drawn, sign = uniforms(7, anchors, tokens, probes), signs(7, anchors, tokens, probes)
    assert drawn.shape == sign.shape == (50, 40, 16)
    assert 0 <= drawn.min() < 1e-3 < 1 - 1e-3 < drawn.max() < 1
    counts = torch.histc(drawn, 32, 0, 1)
    chi_square = float(((counts - 1000).square() / 1000).sum())
    assert chi_square < 62  # 31 degrees of freedom: exceeded once in a thousand
    error = 32000**-0.5
    assert abs(float(sign.mean())) < 4 * error
    assert abs(float((sign * (drawn - 0.5)).mean())) < 4 * error
    for axis in range(3):
        pair = (drawn.narrow(axis, 0, 10) - 0.5) * (drawn.narrow(axis, 1, 10) - 0.5)
        assert abs(float(pair.mean())) < 4 * pair.numel() ** -0.5 / 12
    assert set(sign.unique().tolist()) == {-1.0, 1.0}
    assert drawn[3, 4, 5] == uniforms(7, torch.tensor(3), torch.tensor(4), torch.tensor(5))
    assert float(drawn[3, 4, 5]) == in_whole_numbers(7, 3, 4, 2 * 5)


def in_whole_numbers(*keys: int) -> float:
    """The same hash with Python's integers: no int64 product may wrap another way on another machine."""
    state = 0
    for key in keys:
        state = ((state ^ key) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state = state ^ (state >> 31)
    return (state >> 11) * 2.0**-53


def test_what_does_not_fit_is_refused() -> None:
    model = Bigram()
    parameters = dict(model.named_parameters())
    with pytest.raises(InfluenceError, match=r"30 probes from 17 answer tokens of 5 anchors: add anchors"):
        curvature_probes(model, anchors_of(model, [[0, 1, 2, 3, 4]]), parameters, 30)
    with pytest.raises(InfluenceError, match=r"these do not: \[2, 4\]"):
        anchors_of(model, [[0, 1, 2, 3], [2]])
    with pytest.raises(InfluenceError, match="no anchors"):
        Anchors([])
    silent = anchors_of(model, [[0, 1], [2, 3, 4]])
    silent.batches[1][1][1] = -100
    with pytest.raises(InfluenceError, match="anchor 3 has the loss nan"):
        mean_gradients(model, silent, parameters)
    with pytest.raises(InfluenceError, match="4 inner products for 1 groups of 1 \\+ 2 vectors"):
        sketches(torch.zeros(3, 4), {"all": 5}, 2)
