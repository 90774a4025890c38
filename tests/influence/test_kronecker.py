"""K-FAC and EK-FAC steps against explicit inverses, in float64."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence import (
    Classification,
    RandomDirections,
    UtilityScorer,
    kronecker_preconditioner,
    median_step_size,
)
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Block, Preconditioner, ShardedPreconditioner
from ostlight.influence.sample_gradient import dot, norm, sample_gradient
from ostlight.influence.step_size import direction_norm

Single = tuple[Tensor, Tensor]


class Tokens(nn.Module):
    """Two linear layers over five tokens and a norm between them; the mean over tokens gives three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.first(inputs)))).mean(1)


def new_model() -> Tokens:
    torch.manual_seed(0)
    return Tokens().double().eval()


def new_singles() -> list[Single]:
    torch.manual_seed(1)
    return [(torch.randn(1, 5, 4).double(), torch.randint(0, 3, (1,))) for _ in range(40)]


@pytest.fixture
def model() -> Tokens:
    return new_model()


@pytest.fixture
def singles() -> list[Single]:
    return new_singles()


def by_hand(model: Tokens, singles: list[Single], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """``A [D_in, D_in]``, ``S [D_out, D_out]`` up to a factor, and all gradients ``[N, D_out, D_in]`` of one layer."""
    layer, kept = model.get_submodule(name), []
    layer.register_forward_hook(lambda _, inputs, output: (output.retain_grad(), kept.append((inputs[0], output)))[0])
    gradients = [sample_gradient(model, Classification(), dict(model.named_parameters()), one)[1] for one in singles]
    kept.clear()
    sides = []
    for one in singles:
        Classification().losses(model, one)[0].backward()
        inputs, output = kept[-1]
        sides.append((inputs[0].detach(), output.grad[0]))
    a = sum(inputs.T @ inputs for inputs, _ in sides)
    s = sum(grad.T @ grad for _, grad in sides)
    return a, s, torch.stack([gradient[f"{name}.weight"] for gradient in gradients])


def assert_equal(found: Preconditioner, expected: Preconditioner, parameters: Mapping[str, Tensor]) -> None:
    """Up to the order of sums: eigenvectors may differ where eigenvalues do not, so what they do is compared."""
    torch.manual_seed(9)
    for name, parameter in parameters.items():
        gradient = torch.randn(parameter.shape, dtype=parameter.dtype)
        torch.testing.assert_close(found.apply(name, gradient), expected.apply(name, gradient), rtol=1e-9, atol=1e-12)


def assert_norms(model: nn.Module, found: Preconditioner, parameters: Mapping[str, nn.Parameter], singles: Any) -> None:
    """The length of a preconditioned gradient, which is taken in the bases, is that of the direction itself."""
    for single in singles:
        gradient = sample_gradient(model, Classification(), parameters, single)[1]
        length = direction_norm(model, Classification(), parameters, single, found)
        assert length == pytest.approx(norm(found.direction(gradient)), rel=1e-9)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_samples_of_one_shape_share_a_pass(singles, kind, monkeypatch):
    """As one by one: a table that is also the head, a layer used twice, samples of two lengths, a broken one."""
    torch.manual_seed(4)

    class Tied(nn.Module):
        passes = 0

        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
            self.passes += 1
            hidden = self.layer(torch.tanh(self.layer(self.table(ids)))) * scale[:, None, None]
            return nn.functional.linear(self.norm(hidden), self.table.weight).mean(1)

    model = Tied().double().eval()
    ids = [torch.randint(0, 7, (1, 8 if k % 3 else 5)) for k in range(30)]
    some = [(one, torch.ones(1).double() * (k + 1), torch.randint(0, 7, (1,))) for k, one in enumerate(ids)]
    some[7][1].fill_(float("nan"))
    parameters = dict(model.named_parameters())
    together = kronecker_preconditioner(model, Classification(), parameters, some, kind)
    passes = model.passes
    monkeypatch.setattr("ostlight.influence.kronecker.MOST_SAMPLES", 1)
    alone = kronecker_preconditioner(model, Classification(), parameters, some, kind)
    assert_equal(together, alone, parameters)
    assert_norms(model, alone, parameters, some[:4])
    assert passes < (model.passes - passes) / 1.2


def test_tokens_bound_a_pass(model, singles, monkeypatch):
    monkeypatch.setattr("ostlight.influence.kronecker.MOST_TOKENS", 15)
    task = Classification()
    sizes = []
    monkeypatch.setattr(task, "together", lambda group: sizes.append(len(group)) or Classification().together(group))
    kronecker_preconditioner(model, task, dict(model.named_parameters()), singles, "kfac")
    assert set(sizes) <= {2, 3}
    assert max(sizes) == 3


@pytest.mark.parametrize("name", ["first", "last"])
def test_kfac_is_the_damped_inverse(model, singles, name):
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "kfac", 0.05)
    a, s, gradients = by_hand(model, singles, name)
    scale = gradients.square().sum((1, 2)).mean() / (a.trace() * s.trace())
    damped = [m + 0.05 * m.trace() / len(m) * torch.eye(len(m), dtype=m.dtype) for m in (s, a)]
    curvature = scale * torch.kron(*damped)
    expected = torch.linalg.solve(curvature, gradients.flatten(1).T).T.view_as(gradients)
    assert torch.allclose(found.apply(f"{name}.weight", gradients), expected, rtol=1e-9)


def test_ekfac_is_the_damped_inverse_of_second_moments_in_the_eigenbasis(model, singles):
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "ekfac", 0.05)
    a, s, gradients = by_hand(model, singles, "first")
    basis = torch.kron(torch.linalg.eigh(s).eigenvectors, torch.linalg.eigh(a).eigenvectors)
    moments = (gradients.flatten(1) @ basis).square().mean(0)
    curvature = basis @ torch.diag(moments + 0.05 * moments.mean()) @ basis.T
    expected = torch.linalg.solve(curvature, gradients.flatten(1).T).T.view_as(gradients)
    assert torch.allclose(found.apply("first.weight", gradients), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_other_parameters_go_by_their_diagonal(model, singles, kind):
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, kind, 0.05)
    gradients = torch.stack(
        [
            sample_gradient(model, Classification(), {"norm.weight": model.norm.weight}, one)[1]["norm.weight"]
            for one in singles
        ]
    )
    moments = gradients.square().mean(0)
    expected = gradients / (moments + 0.05 * moments.mean())
    assert torch.allclose(found.apply("norm.weight", gradients), expected, rtol=1e-9)


def test_a_wide_side_goes_by_its_diagonal(model, singles, monkeypatch):
    monkeypatch.setattr("ostlight.influence.gradients.factors.WIDEST", 4)
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "kfac", 0.05)
    a, s, gradients = by_hand(model, singles, "first")
    scale = gradients.square().sum((1, 2)).mean() / (a.trace() * s.trace())
    damped = [m + 0.05 * m.trace() / len(m) * torch.eye(len(m), dtype=m.dtype) for m in (torch.diag(s.diagonal()), a)]
    expected = torch.linalg.solve(scale * torch.kron(*damped), gradients.flatten(1).T).T.view_as(gradients)
    assert torch.allclose(found.apply("first.weight", gradients), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_first_order_along_it_is_the_inner_product(model, singles, kind):
    """A sample is never preconditioned, the anchors' gradient is; `exact` takes the step itself."""
    anchors = [(torch.cat([x for x, _ in singles[:8]]), torch.cat([y for _, y in singles[:8]]))]
    parameters = select_parameters(model, "all")
    found = kronecker_preconditioner(model, Classification(), parameters, singles[8:], kind)
    given = {"parameters": "all", "loss": Classification(), "preconditioner": found}
    first = UtilityScorer(model, anchors, estimator="first_order", step_size=1e-7, **given)
    two_passes = UtilityScorer(
        model, anchors, estimator="finite_difference", step_size=1e-7, calibration=singles[8:12], **given
    )
    exact = UtilityScorer(model, anchors, estimator="exact", step_size=1e-7, **given)
    gradients = [sample_gradient(model, Classification(), parameters, one)[1] for one in singles]
    mean = {name: sum(gradient[name] for gradient in gradients[:8]) / 8 for name in parameters}
    for single, gradient in zip(singles[20:24], gradients[20:24], strict=True):
        step = {name: found.apply(name, g) for name, g in gradient.items()}
        expected = float(dot(step, mean))
        assert float(first(single).alignment) == pytest.approx(expected, rel=1e-9)
        assert float(two_passes(single).alignment) == pytest.approx(expected, rel=1e-5)
        assert float(exact(single).utility) == pytest.approx(1e-7 * expected, rel=1e-4)


def test_rows_of_an_embedding_and_convolutions(singles):
    torch.manual_seed(2)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv, self.head = nn.Embedding(7, 4), nn.Conv1d(4, 5, 2), nn.Linear(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.conv(self.table(ids).mT).mean(2))

    model = Mixed().double().eval()
    some = [(torch.randint(0, 6, (1, 8)), torch.randint(0, 3, (1,))) for _ in range(30)]
    parameters = dict(model.named_parameters())
    found = kronecker_preconditioner(model, Classification(), parameters, some, "kfac", 0.1)
    gradients = [sample_gradient(model, Classification(), parameters, one)[1] for one in some]
    for name in ("table.weight", "conv.bias"):
        moments = torch.stack([gradient[name] for gradient in gradients]).square().mean(0)
        expected = gradients[0][name] / (moments + 0.1 * moments.mean())
        assert torch.allclose(found.apply(name, gradients[0][name]), expected, rtol=1e-9)
    assert found.apply("conv.weight", gradients[0]["conv.weight"]).shape == (5, 4, 2)
    assert_norms(model, found, parameters, some[:4])


def test_it_is_kept_and_found_again(model, singles, tmp_path: Path, logged):
    def make(samples: list[Single], damping: float = 0.1) -> Preconditioner:
        return kronecker_preconditioner(
            model, Classification(), dict(model.named_parameters()), samples, "kfac", damping, tmp_path
        )

    made = make(singles)
    assert "factors taken from" not in logged()
    assert make(singles).digest() == made.digest()
    assert "factors taken from" in logged()
    for other in (make(singles[1:]), make(singles, 0.2)):
        assert other.digest() != made.digest()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_experts_go_by_their_diagonal(kind):
    class Mixture(nn.Module):
        """Each token through one of three experts, which transformers' class holds."""

        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 4, "moe_intermediate_size": 5, "num_experts": 3, "hidden_act": "silu"}
            config = SimpleNamespace(**sizes)
            config._experts_implementation = "eager"
            self.experts, self.head = Qwen3VLMoeTextExperts(config), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            tokens = inputs.reshape(-1, 4)
            chosen = tokens.abs().argmax(1, keepdim=True) % 3
            return self.head(self.experts(tokens, chosen, torch.ones_like(tokens[:, :1])).view_as(inputs)).mean(1)

    torch.manual_seed(3)
    model = Mixture().double().eval()
    for parameter in model.experts.parameters():
        nn.init.normal_(parameter)
    some = [(torch.randn(1, 8, 4).double(), torch.randint(0, 3, (1,))) for _ in range(30)]
    parameters = dict(model.named_parameters())
    found = kronecker_preconditioner(model, Classification(), parameters, some, kind, 0.1)
    gradients = [sample_gradient(model, Classification(), parameters, one)[1] for one in some]
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        moments = torch.stack([gradient[name] for gradient in gradients]).square().mean(0)
        expected = gradients[0][name] / (moments + 0.1 * moments.mean())
        assert torch.allclose(found.apply(name, gradients[0][name]), expected, rtol=1e-9)
    assert_norms(model, found, parameters, some[:4])


@pytest.mark.parametrize("widest", [8192, 5])
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_the_length_of_a_step_is_taken_in_the_bases(kind, widest, monkeypatch):
    """With a table that is also the head, a weight used twice, as it is and transposed, and once entry by entry."""

    class EveryUse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, ids: Tensor) -> Tensor:
            hidden = torch.tanh(self.layer(self.table(ids)))
            hidden = self.norm(torch.matmul(hidden, self.layer.weight))
            hidden = hidden + (hidden.unsqueeze(-1) * self.layer.weight).sum(-1)
            return nn.functional.linear(hidden, self.table.weight).mean(1)

    monkeypatch.setattr("ostlight.influence.gradients.factors.WIDEST", widest)
    torch.manual_seed(5)
    model = EveryUse().double().eval()
    # Of two tokens, these are rotated; of six, their sum is.
    some = [(torch.randint(0, 7, (1, 6 if k % 2 else 2)), torch.randint(0, 7, (1,))) for k in range(30)]
    parameters = dict(model.named_parameters())
    found = kronecker_preconditioner(model, Classification(), parameters, some, kind, 0.1)
    assert (found.blocks["table.weight"].left is None) == (widest == 5)
    assert_norms(model, found, parameters, some[:6])
    lengths = [norm(found.direction(sample_gradient(model, Classification(), parameters, one)[1])) for one in some[:7]]
    step_size = median_step_size(model, parameters, some[:7], 0.3, task=Classification(), preconditioner=found)
    assert step_size == pytest.approx(0.3 / sorted(lengths)[3], rel=1e-9)


def test_second_moments_of_a_weight_that_some_samples_use_entry_by_entry_alone():
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.shape[1] == 4:
                return self.layer(inputs).mean(1)
            return (inputs.unsqueeze(-1) * self.layer.weight).sum(-1).mean(1)

    torch.manual_seed(6)
    model = Either().double().eval()
    some = [(torch.randn(1, 4 + k % 2, 3).double(), torch.randint(0, 3, (1,))) for k in range(30)]
    parameters = dict(model.named_parameters())
    found = kronecker_preconditioner(model, Classification(), parameters, some, "ekfac", 0.1)
    block = found.blocks["layer.weight"]
    assert block.left is not None
    gradients = [sample_gradient(model, Classification(), parameters, one)[1]["layer.weight"] for one in some]
    moments = torch.stack([block.left.T @ g @ block.right for g in gradients]).square().mean(0)
    torch.testing.assert_close(block.inverse, 1 / (moments + 0.1 * moments.mean()), rtol=1e-9, atol=0)
    assert_norms(model, found, parameters, some[:6])


def test_a_sample_without_a_finite_gradient_has_no_step(model, singles):
    parameters = dict(model.named_parameters())
    found = kronecker_preconditioner(model, Classification(), parameters, singles, "kfac", 0.1)
    broken = (torch.full_like(singles[0][0], float("nan")), singles[0][1])
    with pytest.raises(BadRecord, match="loss"):
        direction_norm(model, Classification(), parameters, broken, found)
    whole = median_step_size(model, parameters, singles[:3], 0.3, task=Classification(), preconditioner=found)
    left = median_step_size(model, parameters, [*singles[:3], broken], 0.3, task=Classification(), preconditioner=found)
    assert left == whole


def test_another_loss_autocast_or_code_has_factors_of_its_own(model, singles, tmp_path: Path):
    """Neither shows in the weights, the samples or the names of the parameters."""

    class Doubled(Classification):
        def losses(self, model: nn.Module, batch: Single) -> Tensor:
            return 2 * super().losses(model, batch)

    model.float()
    some = [(x.float(), y) for x, y in singles]

    def make(task: Classification, **given: object) -> str:
        parameters = dict(model.named_parameters())
        return kronecker_preconditioner(model, task, parameters, some, "kfac", cache=tmp_path, **given).digest()

    made = make(Classification())
    assert make(Doubled()) != made
    with torch.autocast("cpu", torch.bfloat16):
        assert make(Classification()) != made
    for code in ("a", "b"):
        make(Classification(), depends_on={"models": code})
    assert make(Classification()) == made
    assert len(list(tmp_path.iterdir())) == 4, "the least recently used of five is gone"


def test_one_process_alone_writes_the_cache_and_only_where_there_is_room(
    model, singles, tmp_path: Path, monkeypatch, logged
):
    def make(**given: object) -> None:
        parameters = dict(model.named_parameters())
        kronecker_preconditioner(model, Classification(), parameters, singles, "kfac", cache=tmp_path, **given)

    make(is_writer=False)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    make()
    assert "factors are not cached" in logged()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-12, 1e12, 1e21, 1e30])
def test_gradients_at_the_edges_of_fp32(model, singles, kind: str, scale: float):
    """A natural step is finite, or there is none: where the squares of all gradients under- or overflow."""

    class Scaled(Classification):
        def losses(self, model: nn.Module, batch: Single) -> Tensor:
            return scale * super().losses(model, batch)

    model.float()
    some = [(x.float(), y) for x, y in singles]
    parameters = dict(model.named_parameters())
    try:
        found = kronecker_preconditioner(model, Scaled(), parameters, some, kind)
    except InfluenceError:
        assert not 1e-20 < scale < 1e18
        return
    assert all(block.inverse.isfinite().all() for block in found.blocks.values())
    _, gradient = sample_gradient(model, Scaled(), parameters, some[0])
    steps = {name: found.apply(name, g) for name, g in gradient.items()}
    assert all(step.isfinite().all() for step in steps.values())
    if 1e-20 < scale < 1e18:
        plain = kronecker_preconditioner(model, Classification(), parameters, some, kind)
        expected = {name: plain.apply(name, g / scale) / scale for name, g in gradient.items()}
        for name, step in steps.items():
            torch.testing.assert_close(step, expected[name], rtol=1e-3, atol=1e-5 / scale)


def test_inputs_and_output_gradients_that_overflow_alone_leave_a_sample_out(model, singles):
    """Their product, the gradient, is of ordinary size."""

    class Steep(Classification):
        def losses(self, model: nn.Module, batch: Single) -> Tensor:
            return 1e-25 * super().losses(model, batch)

    linear = nn.Linear(4, 3, bias=False)
    steep = (torch.full((1, 4), 1e25), torch.zeros(1, dtype=torch.long))
    parameters = dict(linear.named_parameters())
    for kind in ("kfac", "ekfac"):
        with pytest.raises(InfluenceError, match="none of 1 samples"):
            kronecker_preconditioner(linear, Steep(), parameters, [steep], kind)


def test_a_step_is_as_wide_as_the_factors(model, singles):
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "kfac")
    for name, parameter in model.named_parameters():
        assert found.apply(name, torch.ones_like(parameter, dtype=torch.bfloat16)).dtype == torch.float64
    model.float()
    some = [(x.float(), y) for x, y in singles]
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), some, "kfac")
    for name, parameter in model.named_parameters():
        assert found.apply(name, torch.ones_like(parameter, dtype=torch.float64)).dtype == torch.float64


def test_a_sample_without_a_finite_gradient_is_left_out(model, singles):
    broken = (torch.full((1, 5, 4), float("nan")).double(), torch.zeros(1, dtype=torch.long))
    parameters = dict(model.named_parameters())
    with_it = kronecker_preconditioner(model, Classification(), parameters, [broken, *singles], "ekfac")
    without = kronecker_preconditioner(model, Classification(), parameters, singles, "ekfac")
    assert_equal(with_it, without, parameters)
    for samples in ([broken], []):
        with pytest.raises(InfluenceError, match="finite gradient other than zero"):
            kronecker_preconditioner(model, Classification(), parameters, samples, "kfac")


def test_a_parameter_without_gradient_takes_no_step(model, singles):
    """Its curvature is unknown, and dividing by it would make every utility NaN."""
    model.unused = nn.Linear(2, 2).double()
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "kfac")
    assert not found.apply("unused.weight", torch.ones(2, 2).double()).any()
    dead = [(torch.zeros_like(x), y) for x, y in singles]  # the first layer's inputs are all zero
    found = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), dead, "ekfac")
    assert all(block.inverse.isfinite().all() for block in found.blocks.values())


@pytest.mark.parametrize(("kind", "damping"), [("shampoo", 0.1), ("kfac", 0.0)])
def test_arguments(model, singles, kind, damping):
    with pytest.raises(InfluenceError, match="kfac, ekfac|above 0"):
        kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, kind, damping)


def test_a_batch_of_several_is_no_sample(model):
    several = (torch.randn(3, 5, 4).double(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(InfluenceError, match="one a batch"):
        kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), [several], "kfac")


def test_exact_takes_the_preconditioned_step(model, singles):
    parameters = select_parameters(model, "all")
    found = kronecker_preconditioner(model, Classification(), parameters, singles, "kfac")
    scorer = UtilityScorer(
        model,
        [singles[0]],
        parameters="all",
        estimator="exact",
        step_size=0.01,
        loss=Classification(),
        preconditioner=found,
    )
    assert isinstance(scorer._estimator, Exact)
    _, gradient = sample_gradient(model, Classification(), parameters, singles[5])
    before = Classification().losses(model, singles[0]).item()
    moved = Tokens().double().eval()
    moved.load_state_dict({n: p - 0.01 * found.apply(n, gradient[n]) for n, p in parameters.items()})
    after = Classification().losses(moved, singles[0]).item()
    assert float(scorer(singles[5]).utility) == pytest.approx(before - after, rel=1e-9)


def of_one_rank(rank: int, ranks: int, folder: str, kind: str) -> None:
    """Scores with factors and vectors split over the ranks, the second time with factors from the cache."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    for attempt in range(2):
        found = scored_in_splits(kind, Path(folder) / "cache")
        torch.save(found, f"{folder}/{rank}-{attempt}.pt")
    dist.destroy_process_group()


def scored_in_splits(kind: str, cache: Path) -> dict[str, Any]:
    model, singles = new_model(), new_singles()
    singles[12] = (torch.full_like(singles[12][0], float("nan")), singles[12][1])  # left out by every rank
    parameters = select_parameters(model, "all")
    preconditioner = kronecker_preconditioner(
        model, Classification(), parameters, singles[8:30], kind, cache=cache, split=True
    )
    given = {"parameters": "all", "loss": Classification(), "preconditioner": preconditioner, "step_size": 0.01}
    scorer = UtilityScorer(
        model, singles[:8], estimator="projected", rank=2, calibration=singles[30:36], vector_storage="split", **given
    )
    agreement = scorer.rank_agreement(singles[36:])
    step_size = median_step_size(
        model, parameters, singles[8:12], 0.1, task=Classification(), preconditioner=preconditioner
    )
    utilities = [float(scorer(single).utility) for single in singles[36:]]
    scorer.close()
    return {
        "held": sorted(preconditioner.blocks),
        "digest": preconditioner.digest(),
        "step_size": step_size,
        "utilities": utilities,
        "agreement": agreement.spearman,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_factors_split_over_two_ranks_say_what_one_rank_says(kind, tmp_path):
    alone = scored_in_splits(kind, tmp_path / "alone")
    mp.spawn(of_one_rank, (2, str(tmp_path), kind), nprocs=2)
    for attempt in range(2):
        first, second = (torch.load(tmp_path / f"{rank}-{attempt}.pt") for rank in range(2))
        assert sorted(first["held"] + second["held"]) == alone["held"]
        assert first["held"]
        assert second["held"]
        for found in (first, second):
            assert found["digest"] == alone["digest"]
            assert found["step_size"] == pytest.approx(alone["step_size"], rel=1e-12)
            assert found["utilities"] == pytest.approx(alone["utilities"], rel=1e-9)
            assert found["agreement"] == pytest.approx(alone["agreement"])
    assert len(list((tmp_path / "cache").glob(f"{kind}-*.safetensors"))) == 2


def test_memory_is_told_beforehand(model, singles, logged):
    kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, "kfac")
    assert "MiB of factors" in logged()


def test_parts_of_a_split_preconditioner_belong_to_their_ranks():
    split = ShardedPreconditioner({"a": Block(torch.ones(2))}, "kfac", owners={"a": 0, "b": 1})
    assert split.apply("a", torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(InfluenceError, match="rank 1 holds the factors of b"):
        split.apply("b", torch.ones(2))
    with pytest.raises(InfluenceError, match="do not split them"):
        RandomDirections({"a": nn.Parameter(torch.ones(2))}, 4, 0, split)
