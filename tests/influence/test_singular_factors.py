"""K-FAC and EK-FAC where the factors have no inverse: constant inputs, dead units, fewer samples than dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ostlight.influence import Classification, UtilityScorer, kronecker_preconditioner
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import dot, sample_gradient

Single = tuple[Tensor, Tensor]
CASES = ["constant inputs", "dead units", "all units dead", "fewer samples than dimensions", "one sample"]
DAMPING = 0.1


def make(case: str) -> tuple[nn.Sequential, list[Single]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    singles = [(torch.randn(1, 5).double(), torch.randint(0, 3, (1,))) for _ in range(30)]
    if case == "constant inputs":
        singles = [(singles[0][0], label) for _, label in singles]
    if "dead" in case:
        with torch.no_grad():
            model[0].bias[: 6 if case.startswith("all") else 3] = -100
    if case == "fewer samples than dimensions":
        singles = singles[:3]
    return model, singles[:1] if case == "one sample" else singles


def preconditioner(model: nn.Module, singles: list[Single], kind: str) -> Preconditioner:
    return kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, kind, DAMPING)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_finite_and_a_step_lowers_the_samples_own_loss(case: str, kind: str):
    model, singles = make(case)
    found = preconditioner(model, singles, kind)
    for single in singles:
        _, gradient = sample_gradient(model, Classification(), dict(model.named_parameters()), single)
        step = found.direction(gradient)
        assert all(bool(part.isfinite().all()) for part in step.values())
        assert float(dot(gradient, step)) > 0


@pytest.mark.parametrize("case", CASES[1:])
def test_it_is_the_damped_inverse_of_the_singular_factors(case: str):
    model, singles = make(case)
    found = preconditioner(model, singles, "kfac")
    inputs, outputs, gradients = [], [], []
    for x, label in singles:
        hidden = torch.relu(model[0](x)).detach()
        logits = model[2](hidden)
        (b,) = torch.autograd.grad(nn.functional.cross_entropy(logits, label), logits)
        inputs.append(hidden[0])
        outputs.append(b[0])
        gradients.append(torch.outer(b[0], hidden[0]))
    a = torch.stack(inputs).T @ torch.stack(inputs)
    s = torch.stack(outputs).T @ torch.stack(outputs)
    assert min(int(torch.linalg.matrix_rank(m)) - len(m) for m in (a, s)) < 0
    if not a.any():
        assert not found.apply("2.weight", torch.ones(3, 6).double()).any()  # nothing is known of it: no step
        return
    scale = torch.stack(gradients).square().sum((1, 2)).mean() / (a.trace() * s.trace())
    damped = [m + DAMPING * m.trace() / len(m) * torch.eye(len(m), dtype=m.dtype) for m in (s, a)]
    gradient = torch.stack(gradients).flatten(1)
    expected = torch.linalg.solve(scale * torch.kron(*damped), gradient.T).T.view(-1, 3, 6)
    assert torch.allclose(found.apply("2.weight", torch.stack(gradients)), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator", ["first_order", "finite_difference"])
@pytest.mark.parametrize("case", CASES)
def test_utilities_along_it_are_numbers(case: str, estimator: str):
    model, singles = make(case)
    batch = (torch.cat([x for x, _ in singles]), torch.cat([label for _, label in singles]))
    scorer = UtilityScorer(
        model,
        [batch],
        loss=Classification(),
        estimator=estimator,
        step_size=0.1,
        parameters="all",
        calibration=[batch] if estimator == "finite_difference" else None,
        preconditioner=preconditioner(model, singles, "kfac"),
    )
    columns = scorer.columns(batch)
    assert all(bool(torch.isfinite(torch.as_tensor(columns[name])).all()) for name in ("score", "alignment"))
