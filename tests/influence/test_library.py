"""The library on plain torch models, without the rest of ostlight; every estimator against the step written by hand."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence import (
    CausalLM,
    Classification,
    UtilityScorer,
    UtilityScores,
    adam_preconditioner,
    kronecker_preconditioner,
    median_step_size,
)
from ostlight.influence import select_parameters as select
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.task import PerSampleLoss

STEP_SIZE = 0.05
FOREIGN = (
    "lightning transformers omegaconf peft pydantic ostlight.config ostlight.data ostlight.models ostlight.pipeline"
)


def test_the_library_imports_neither_the_pipeline_nor_a_training_framework() -> None:
    code = f"""
import sys
for name in {FOREIGN.split()!r}:
    sys.modules[name] = None
import ostlight.influence
assert "torch" not in sys.modules, "importing the package is cheap"
from ostlight.influence import CausalLM, Classification, UtilityScorer, adam_preconditioner, median_step_size
from ostlight.influence import kronecker_preconditioner, rank_agreement
import ostlight.influence.gradients.engine
own = [n for n in sys.modules if n.startswith("ostlight.") and sys.modules[n] is not None]
print(sorted({{n.split(".")[1] for n in own}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['compiled_code', 'errors', 'influence', 'progress', 'redact']"


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (count,), generator=generator)


ANCHORS = [digits(5, 1), digits(3, 2)]
POOL = digits(12, 3)


def anchor_losses(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in ANCHORS])


def by_hand(step_size: float = STEP_SIZE) -> Tensor:
    """``[N, A]`` decrease of each anchor's loss by a step on each sample."""
    rows = []
    for x, y in zip(*POOL, strict=True):
        model = classifier()
        before = anchor_losses(model)
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= step_size * parameter.grad
        rows.append(before - anchor_losses(model))
    return torch.stack(rows)


def scorer(estimator: str, **options: Any) -> UtilityScorer:
    given = {"parameters": "all", "step_size": STEP_SIZE, "loss": Classification()} | options
    return UtilityScorer(classifier(), ANCHORS, estimator=estimator, **given)


def test_exact_is_the_step_written_by_hand() -> None:
    scores = scorer("exact")(POOL)
    assert isinstance(scores, UtilityScores)
    torch.testing.assert_close(scores.utility, by_hand().mean(1), rtol=1e-9, atol=1e-14)
    assert list(scores.failures) == [None] * 12


def test_the_gradient_estimators_agree_with_plain_autograd() -> None:
    model, first = classifier(), scorer("first_order")(POOL)
    finite = scorer("finite_difference", calibration=[POOL])(POOL)
    mean = torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in ANCHORS]).mean()
    wanted = torch.autograd.grad(mean, list(model.parameters()))
    for k, (x, y) in enumerate(zip(*POOL, strict=True)):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        product = sum(float((a * b).sum()) for a, b in zip(gradient, wanted, strict=True))
        length = sum(float(a.square().sum()) for a in gradient) ** 0.5
        assert float(first.alignment[k]) == pytest.approx(product, rel=1e-9)
        assert float(first.utility[k]) == pytest.approx(STEP_SIZE * product, rel=1e-9)
        assert float(first.gradient_norm[k]) == pytest.approx(length, rel=1e-9)
        assert float(first.loss[k]) == pytest.approx(loss.item(), rel=1e-12)
        assert float(finite.utility[k]) == pytest.approx(STEP_SIZE * product, rel=1e-4)


@pytest.mark.parametrize(("estimator", "options"), [("projected", {"rank": 6}), ("second_order", {"probes": 8})])
def test_curvature_brings_the_utility_nearer_to_exact(estimator: str, options: dict[str, Any]) -> None:
    size, expected = 0.5, by_hand(0.5).mean(1)
    more = {"calibration": [POOL]} if estimator == "projected" else {}
    found = scorer(estimator, step_size=size, **options, **more)(POOL)
    first = scorer("first_order", step_size=size)(POOL)
    assert found.phi is not None
    assert (found.utility - expected).norm() < (first.utility - expected).norm()


def test_groups_of_one_anchor_give_a_utility_by_anchor() -> None:
    scores = scorer("exact", utility_by_anchor=True)(POOL)
    torch.testing.assert_close(scores.utility_by_anchor, by_hand(), rtol=1e-7, atol=1e-13)
    assert "utility_by_group" not in scores
    grouped = scorer("first_order", groups=["a"] * 7 + ["b"])(POOL)
    both = scorer("first_order", groups=["a"] * 7 + ["b"], utility_by_anchor=True)
    assert both.groups == ["a", "b"]
    torch.testing.assert_close(both(POOL)["utility_by_group"], grouped["utility_by_group"], rtol=1e-9, atol=1e-14)
    mean = (7 * grouped["utility_by_group"][:, 0] + grouped["utility_by_group"][:, 1]) / 8
    torch.testing.assert_close(mean, grouped.utility, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("estimator", ["exact", "first_order"])
def test_a_sample_that_cannot_be_scored_has_a_reason_and_no_number(estimator: str) -> None:
    inputs, labels = POOL[0].clone(), POOL[1]
    inputs[2] = float("nan")
    scores = scorer(estimator)((inputs, labels))
    assert [failure.reason if failure else None for failure in scores.failures] == [
        "loss_not_finite" if k == 2 else None for k in range(12)
    ]
    assert scores.utility.isnan().tolist() == [k == 2 for k in range(12)]


def test_the_model_is_left_as_it_was() -> None:
    model = classifier().train()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    made = UtilityScorer(model, ANCHORS, parameters="all", estimator="exact", step_size=0.1, loss=Classification())
    made(POOL)
    assert model.training
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_function_as_loss_serves_where_no_logits_are_needed() -> None:
    def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - nn.functional.one_hot(batch[1], 3)).square().sum(1)

    assert scorer("first_order", loss=squared_error)(POOL).utility.isfinite().all()
    with pytest.raises(InfluenceError, match="gives losses and no logits"):
        scorer("second_order", loss=squared_error, probes=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"estimator": "best"}, "estimator must be one of"),
        ({"step_size": None}, "median_step_size"),
        ({"estimator": "projected"}, "needs calibration"),
        ({"estimator": "projected", "calibration": [POOL]}, "rank=32"),
        ({"rank": 4}, "rank is a number above 0 for estimator=projected"),
        ({"vector_storage": "disk"}, "vector_storage must be one of"),
        ({"parameters": "blocks"}, "no list of transformer blocks"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InfluenceError, match=says):
        scorer(**({"estimator": "first_order"} | options))


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(11, 6).double(), nn.Linear(6, 11).double()

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(torch.tanh(self.table(input_ids))))


def test_batches_with_labels_are_scored_as_causal_language_models() -> None:
    ids = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.arange(7) < 3, -100)}
    model = Bigram()
    scores = UtilityScorer(model, [batch], parameters="all", estimator="exact", step_size=0.1)(batch)
    logits = model(ids).logits[:, 2:-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 3:].flatten(), reduction="none").view(4, 4)
    torch.testing.assert_close(scores.loss, expected.mean(1).detach(), rtol=1e-12, atol=0)
    size = median_step_size(model, select(model, "all"), [batch], update_norm=0.5, task=CausalLM())
    norms = UtilityScorer(model, [batch], parameters="all", estimator="first_order", step_size=1.0)(batch).gradient_norm
    assert size * float(norms.median()) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-60, 1e60])
def test_a_step_size_is_never_zero_or_infinite(scale: float) -> None:
    ids = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(1))
    model, batch = Bigram(), {"input_ids": ids, "labels": ids}
    task = PerSampleLoss(lambda model, batch: scale * CausalLM().losses(model, batch))
    with pytest.raises(InfluenceError, match="set step_size"):
        median_step_size(model, select(model, "all"), [batch], update_norm=0.5, task=task)


@pytest.mark.parametrize(
    ("layer", "is_supported"),
    [
        (nn.Conv1d(2, 3, 2), True),
        (nn.Conv1d(2, 4, 2, groups=2), False),
        (nn.GroupNorm(1, 2), False),
        (nn.LayerNorm(6), True),
    ],
)
def test_the_table_of_supported_uses_is_true(layer: nn.Module, is_supported: bool) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).double()
    batch = (torch.randn(4, 2, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    model(batch[0])
    options: dict[str, Any] = {"parameters": "all", "estimator": "first_order", "step_size": 0.1}
    if is_supported:
        made = UtilityScorer(model, [batch], loss=Classification(), **options)
        assert made.verify(batch) < 1e-9
        return
    with pytest.raises(InfluenceError, match=r"per-sample gradients: the parameter 0\."):
        UtilityScorer(model, [batch], loss=Classification(), **options)(batch)


def test_vectors_and_factors_that_were_kept_for_another_loss_are_not_taken(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    batch = (torch.randn(6, 5), torch.randint(3, (6,)))

    def entropy(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def squared(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - nn.functional.one_hot(batch[1], 3)).square().sum(1)

    def utilities(loss: Any, cache: Any) -> list[float]:
        task, chosen = PerSampleLoss(loss), select(model, "all")
        kfac = kronecker_preconditioner(model, task, chosen, task.singles(batch), "kfac", cache=cache)
        scorer = UtilityScorer(
            model, [batch], loss=task, parameters="all", estimator="first_order", step_size=0.1, preconditioner=kfac,
            vector_storage=VectorSettings("full", cache, {}, True),
        )  # fmt: skip
        return scorer(batch).utility.tolist()

    model.eval()
    for loss in (entropy, squared):
        assert utilities(loss, tmp_path / "kept") == utilities(loss, None)
    assert utilities(entropy, tmp_path / "kept") == utilities(entropy, None)


def test_adam_takes_no_step_where_no_gradient_was_ever_seen() -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    moments = torch.tensor([[4.0, 0.0], [1.0, 1e-30], [0.0, 9.0]])
    applied = adam_preconditioner({"w": weight}, {"w": moments}).apply("w", torch.ones(3, 2))
    assert applied[:, 0].tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert applied[:, 1].tolist() == pytest.approx([0.0, 1e8, 1 / 3], rel=1e-2)


def test_a_step_on_adapters_in_float32_over_a_base_in_bf16_is_taken_in_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 2))
    chosen = {name: p for name, p in model.named_parameters() if name.startswith("1.")}
    step = SimulatedStep(model, chosen, SimpleNamespace(task=None), 0.1, None)  # type: ignore[arg-type]
    assert {p.dtype for p in step.in_full_precision().model.parameters()} == {torch.float32}
    model = model.float()
    step = SimulatedStep(model, dict(model.named_parameters()), SimpleNamespace(task=None), 0.1, None)  # type: ignore[arg-type]
    assert step.in_full_precision() is step


def test_a_layer_whose_first_axis_is_not_the_samples_is_refused_and_not_scored() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(torch.tanh(self.inside(inputs.transpose(0, 1))).mean(0))

    torch.manual_seed(0)
    model = SequenceFirst()
    batch = (torch.randn(6, 12, 3), torch.randint(2, (6,)))
    scorer = UtilityScorer(
        model, [batch], loss=Classification(), parameters="all", estimator="first_order", step_size=0.1
    )
    with pytest.raises(InfluenceError, match="by plain autograd"):
        scorer(batch)
