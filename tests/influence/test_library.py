"""The library on plain torch models, without the rest of ostlight; every estimator against the step written by hand."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ostlight.errors import InfluenceError
from ostlight.influence import (
    CausalLM,
    Classification,
    Task,
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


class _AnswersAlone(nn.Module):
    """Its head sees the answers' tokens alone, of all samples in one run."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)

    def forward(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids)[wanted])


class _OfAnswers(Task):
    def losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        ids, labels = batch["ids"], batch["labels"]
        wanted = labels != -100
        losses = nn.functional.cross_entropy(model(ids, wanted), labels[wanted], reduction="none")
        return losses.new_zeros(len(ids)).index_add(0, wanted.nonzero()[:, 0], losses) / wanted.sum(1)


def test_rows_that_may_be_of_other_samples_are_refused_though_their_number_fits():
    def batch(seed: int, *lengths: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids, labels = torch.randint(0, 20, (2, len(lengths), 6), generator=generator)
        return {"ids": ids, "labels": labels.where(torch.arange(6) < torch.tensor(lengths)[:, None], -100)}

    torch.manual_seed(0)
    scorer = UtilityScorer(
        _AnswersAlone(),
        [batch(1, 3, 3)],
        parameters="head.weight",
        estimator="first_order",
        step_size=0.1,
        loss=_OfAnswers(),
    )
    assert torch.isfinite(scorer(batch(2, 6, 6)).utility).all()
    with pytest.raises(InfluenceError, match="it sees 6 rows, which are not the 2 samples"):
        scorer(batch(3, 1, 5))


class _Escaping(nn.Module):
    """Reads a weight past the parameter, as kernels that read its memory do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 3)
        self.alias = [self.scale]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)) * self.alias[0])


def test_a_use_that_escapes_is_found_in_batches_of_one_too_and_again():
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    scorer = UtilityScorer(
        _Escaping(), [(x, y)], parameters="all", estimator="first_order", step_size=1e-4, loss=Classification()
    )
    for single in ((x[:1], y[:1]), (x[1:2], y[1:2])):
        with pytest.raises(InfluenceError, match="parameter scale"):
            scorer(single)


def test_each_modules_mode_is_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    model[1].eval()
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    UtilityScorer(model, [(x, y)], parameters="all", estimator="exact", step_size=0.1, loss=Classification())
    assert [model.training, *(module.training for module in model)] == [True, True, False, True]


def test_a_step_that_breaks_the_model_is_a_failure():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    scorer = UtilityScorer(model, [(x, y)], parameters="all", estimator="exact", step_size=1e38, loss=Classification())
    scores = scorer((x, y))
    failed = [failure is not None for failure in scores.failures]
    assert torch.isnan(scores.utility).tolist() == failed
    assert {failure.reason for failure in scores.failures if failure} == {"score_not_finite"}


@pytest.mark.parametrize("parameters", ["head", "blocks"])
def test_an_anchor_without_a_finite_loss_is_refused(parameters: str):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, tie_word_embeddings=False, **sizes)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[49] = float("inf")

    def batch(seed: int, token: int | None = None) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 49, (2, 6), generator=torch.Generator().manual_seed(seed))
        ids[0, 1] = ids[0, 1] if token is None else token
        labels = torch.where(torch.arange(6) < 3, -100, ids)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    anchors = [batch(1), batch(2, 49), batch(4), batch(5)]
    named = "anchor 2: .*nan" if parameters == "head" else "loss on the anchors is nan"
    with pytest.raises(InfluenceError, match=named):
        UtilityScorer(model, anchors, parameters=parameters, estimator="exact", step_size=0.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_vectors_of_another_scaling_of_the_same_adapters_are_not_taken(tmp_path: Path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, **sizes)).eval()

    def batch(seed: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def utilities(alpha: int, cache: Path | None) -> torch.Tensor:
        torch.manual_seed(1)
        settings = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(copy.deepcopy(base), settings).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        storage = VectorSettings(cache=cache)
        scorer = UtilityScorer(
            model, [batch(1)], parameters="lora", estimator="first_order", step_size=0.1, vector_storage=storage
        )
        return scorer(batch(2)).utility

    utilities(8, tmp_path)
    assert torch.equal(utilities(32, tmp_path), utilities(32, None))
