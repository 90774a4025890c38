"""The factors of K-FAC and the second moments of EK-FAC are those of kronfluence, with labels as they are.

kronfluence (https://github.com/pomonam/kronfluence) is the reference implementation; it is no dependency of the tests:
``pip install kronfluence``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ostlight.influence import Classification, kronecker_preconditioner

kronfluence = pytest.importorskip("kronfluence", reason="kronfluence is not installed; compare with it by hand")

DAMPING = 0.1


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs)))


class Labelled(kronfluence.Task):
    """Cross-entropy, summed, of the labels as they are."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return ["first", "last"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_equal_to_kronfluence(tmp_path: Path, kind: str) -> None:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments

    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 6), torch.randint(0, 4, (64,))
    model = Two().eval()
    singles = [(inputs[k : k + 1], labels[k : k + 1]) for k in range(64)]
    ours = kronecker_preconditioner(model, Classification(), dict(model.named_parameters()), singles, kind, DAMPING)
    theirs = Two().eval()
    theirs.load_state_dict(model.state_dict())
    analyzer = Analyzer("compare", prepare_model(theirs, Labelled()), Labelled(), cpu=True, output_dir=str(tmp_path))
    analyzer.fit_all_factors(
        "factors",
        torch.utils.data.TensorDataset(inputs, labels),
        per_device_batch_size=16,
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
    )
    covariance = analyzer.load_covariance_matrices("factors")
    eigen = {**analyzer.load_eigendecomposition("factors"), **analyzer.load_lambda_matrices("factors")}
    for name in ("first", "last"):
        gradients = torch.randn(5, *model.get_submodule(name).weight.shape)
        if kind == "ekfac":
            count = float(eigen["num_lambda_processed"][name])
            moments = eigen["lambda_matrix"][name] / count
            left, right = eigen["gradient_eigenvectors"][name], eigen["activation_eigenvectors"][name]
            inside = (left.T @ gradients @ right) / (moments + DAMPING * moments.mean())
            expected = left @ inside @ right.T
        else:
            a, s = covariance["activation_covariance"][name], covariance["gradient_covariance"][name]
            norms = torch.stack([g.square().sum() for g in per_sample(model, name, singles)])
            scale = norms.mean() / (a.trace() * s.trace())
            damped = [m + DAMPING * m.trace() / len(m) * torch.eye(len(m)) for m in (s, a)]
            expected = torch.linalg.solve(damped[0], gradients) @ torch.linalg.inv(damped[1]) / scale
        torch.testing.assert_close(ours.apply(f"{name}.weight", gradients), expected, rtol=2e-3, atol=2e-3)


def per_sample(model: nn.Module, name: str, singles: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    weight = model.get_submodule(name).weight
    return [torch.autograd.grad(Classification().losses(model, one)[0], weight)[0] for one in singles]
