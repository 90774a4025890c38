"""Every family through its real processor and model: labels, losses, batches, training, saving, adapters.

The reference is transformers' own: its processor and its loss, on one record alone. Images and texts have several
sizes, and one record has two images, where batches go wrong if they can.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
import transformers
from tiny_families import FAMILIES
from torch import Tensor

from ostlight.config.schema import Evaluation, Lora, Model, Target, Training
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import ModelError
from ostlight.evaluation.generate import generate_answers
from ostlight.influence import UtilityScorer
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import dot, sample_gradient
from ostlight.influence.scorer import ESTIMATORS
from ostlight.models.batch import Batch
from ostlight.models.embedding import load_embedder, pooled_states_embedder
from ostlight.models.influence_task import SampleTask
from ostlight.models.logits import next_token_logits
from ostlight.models.losses import IGNORED, per_sample_losses
from ostlight.models.module import MultimodalModel

# Its processor hands NumPy tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:.*paligemma")

QUICK = ("llava_next", "mllama")
"""Families of the quick suite: tiles of an image, and cross-attention. The others take a minute together."""

EACH = [
    pytest.param(
        name,
        marks=[
            *([] if name in QUICK else [pytest.mark.slow]),
            *(
                [pytest.mark.skipif(not importlib.util.find_spec(family.needs), reason=f"{family.needs} is missing")]
                if family.needs
                else []
            ),
        ],
    )
    for name, family in FAMILIES.items()
]


def load(name: str, folder: Path, dtype: str = "float64") -> MultimodalModel:
    return MultimodalModel.load(Model(path=str(tiny_families.save(name, folder)), dtype=dtype), "proxy")


def as_transformers_has_it(folder: Path, sample: Sample, labels: Tensor) -> Tensor:
    """The loss of a record by transformers' own processor and model, alone."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model: Any = kind.from_pretrained(folder, dtype=torch.float64).eval()
    if not sample.images:
        processor = transformers.AutoTokenizer.from_pretrained(folder)
    else:
        processor = MultimodalModel.load(Model(path=str(folder)), "proxy").encoder.processor
    messages = [{"role": turn.role, "content": content(turn.text, bool(sample.images))} for turn in sample.turns]
    text = processor.apply_chat_template(messages, tokenize=False)
    images = {"images": [[image.open() for image in sample.images]]} if sample.images else {}
    inputs = processor(text=[text], **images, return_tensors="pt", add_special_tokens=False)
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"}
    if model.config.model_type == "paligemma":  # reads what stands before an answer in both directions, type 0
        inputs["token_type_ids"] = ((labels != IGNORED).cumsum(0) > 0).long()[None]
    if model.config.model_type == "qwen3_vl_moe":
        model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(**inputs, labels=labels[None]).loss


def content(text: str, with_images: bool) -> Any:
    if not with_images:
        return text
    parts: list[dict[str, str]] = []
    for k, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
        parts += [{"type": "image"}] if k else []
        parts += [{"type": "text", "text": part}] if part.strip() else []
    return parts


@pytest.mark.parametrize("name", EACH)
def test_labels_are_the_answers_and_losses_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    tokenizer = model.encoder.tokenizer
    for sample in tiny_families.samples(name):
        batch = model.collator.batch([sample], [model.encoder.encode(sample)])
        labels = batch.labels[0]
        answers = "".join(f"{turn.text}{tokenizer.eos_token}" for turn in sample.turns if turn.trained)
        said = tokenizer.decode(labels[labels != IGNORED])
        assert said.replace(" ", "") == answers.replace(" ", "")
        own = as_transformers_has_it(tmp_path, sample, labels)
        assert torch.allclose(model.losses(batch)[0].double(), own.double(), atol=1e-5)


def arrangements(model: MultimodalModel, samples: list[Sample]) -> list[tuple[list[int], Batch]]:
    """Batches of one, of all, and of a few, padded on either side, with the samples' numbers."""
    encoded = [model.encoder.encode(sample) for sample in samples]
    last = len(samples) - 1
    made = []
    for side, rows in [*(("right", [k]) for k in range(last + 1)), ("right", [*range(last + 1)]),
                       ("left", [last, *range(last)]), ("left", [0, last])]:  # fmt: skip
        model.collator.side = side  # type: ignore[assignment]
        made.append((rows, model.collator.batch([samples[k] for k in rows], [encoded[k] for k in rows])))
    return made


@pytest.mark.parametrize("name", EACH)
def test_a_sample_is_the_same_in_every_batch(name: str, tmp_path: Path) -> None:
    model, task = load(name, tmp_path), SampleTask()
    samples = tiny_families.samples(name)
    parameters = select_parameters(model.model, "blocks")
    generator = torch.Generator().manual_seed(0)
    vectors = {
        key: torch.randn(2, *p.shape, generator=generator, dtype=p.dtype) for key, p in parameters.items()
    }  # fmt: skip
    losses, dots = [[[] for _ in samples] for _ in range(2)]
    for rows, batch in arrangements(model, samples):
        found = GradientDots(model.model, parameters).products(
            lambda batch=batch: task.losses(model.model, batch), RowMap(model.model).of_batch(task, batch), vectors
        )
        for place, row in enumerate(rows):
            losses[row].append(found.losses[place])
            dots[row].append(found.dots[place])
    for one, product in zip(losses, dots, strict=True):
        assert len(one) >= 3
        assert torch.stack(one).std() <= 1e-9
        assert torch.stack(product).std(0).max() <= 1e-7 * torch.stack(product).abs().max()


@pytest.mark.parametrize("scope", ["blocks", "^(?!.*image_newline)", "lora"], ids=["blocks", "all", "lora"])
@pytest.mark.parametrize("name", EACH)
def test_gradients_agree_with_autograd_on_each_sample_alone(name: str, scope: str, tmp_path: Path) -> None:
    lora = Lora(rank=2) if scope == "lora" else None
    settings = Target(path=str(tiny_families.save(name, tmp_path)), dtype="float64", lora=lora)
    model, task = MultimodalModel.load(settings, "target"), SampleTask()
    (batch,) = model.batches(tiny_families.samples(name), 100_000)
    parameters = select_parameters(model.model, scope)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():  # LoRA's B is zero before training
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    vectors = {
        key: torch.randn(2, *p.shape, generator=generator, dtype=p.dtype) for key, p in parameters.items()
    }  # fmt: skip
    found = GradientDots(model.model, parameters).products(
        lambda: task.losses(model.model, batch), RowMap(model.model).of_batch(task, batch), vectors, squared_norms=True
    )
    singles = [sample_gradient(model.model, task, parameters, single)[1] for single in batch.singles()]
    dots = torch.stack([sum((vectors[key] * one[key]).flatten(1).sum(1) for key in one) for one in singles])
    norms = torch.stack([dot(one, one) for one in singles])
    # Norm layers round to float32 whatever the dtype.
    assert (found.dots - dots).abs().max() <= 1e-5 * dots.abs().max()
    assert (found.squared_norms - norms).abs().max() <= 1e-5 * norms.max()


@pytest.mark.parametrize("name", EACH)
def test_gradient_checkpointing_changes_nothing(name: str, tmp_path: Path) -> None:
    path, task, found = str(tiny_families.save(name, tmp_path)), SampleTask(), []
    for checkpointing in (False, True):
        settings = Target(path=path, dtype="float64", gradient_checkpointing=checkpointing)
        model = MultimodalModel.load(settings, "target")
        (batch,) = model.batches(tiny_families.samples(name), 100_000)
        parameters = select_parameters(model.model, "blocks")
        products = GradientDots(model.model, parameters).products(
            lambda model=model, batch=batch: task.losses(model.model, batch),
            RowMap(model.model).of_batch(task, batch),
            squared_norms=True,
        )
        model.losses(batch).sum().backward()
        found.append((products.squared_norms, *(p.grad for p in model.trained.values())))
    for plain, checkpointed in zip(*found, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.allclose(plain, checkpointed, rtol=1e-9)


def check_every_batch_agrees(model: Any, samples: list[Any], embed: Any) -> None:
    found: list[list[Tensor]] = [[] for _ in samples]
    for rows, batch in arrangements(model, samples):
        for row, vector in zip(rows, torch.from_numpy(embed(batch)), strict=True):
            found[row].append(vector)
    for one in found:
        assert torch.stack(one).isfinite().all()
        assert torch.stack(one).std(0).max() <= 1e-6


@pytest.mark.parametrize("name", EACH)
def test_embeddings_are_the_same_in_every_batch(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    embed = load_embedder(None, model)
    samples = tiny_families.samples(name)
    check_every_batch_agrees(model, samples, embed)


@pytest.mark.parametrize("name", EACH)
def test_pooled_states_are_the_same_in_every_batch(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    samples = tiny_families.samples(name)
    for states, tokens in (("hidden", "both"), ("attention", "all")):
        embed = pooled_states_embedder(model, states, [0.5, 1.0], tokens, "weighted_mean")  # type: ignore[arg-type]
        if states == "attention" and name == "mllama":
            with pytest.raises(ModelError, match="blocks without self_attn"):
                embed(model.batches(samples, 100_000)[0])
            continue
        check_every_batch_agrees(model, samples, embed)


@pytest.mark.parametrize("name", EACH)
def test_the_tokens_of_images_are_known(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    for sample in tiny_families.samples(name):
        ids = model.encoder.encode(sample).inputs["input_ids"]
        seen = 0 if model.encoder.image_token_id is None else int((ids == model.encoder.image_token_id).sum())
        least = 1 if name == "mllama" else 2  # Mllama's images stay outside of the text, one token each
        assert seen >= least * len(sample.images)
        assert bool(seen) == bool(sample.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_the_estimators_agree(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    (anchors,) = model.batches(tiny_families.samples(name)[:3], 100_000)
    (batch,) = model.batches(tiny_families.samples(name), 100_000)
    found = {}
    for estimator in ESTIMATORS:
        calibration = {"calibration": [batch]}
        needs = {
            "projected": {"rank": 3, **calibration},
            "second_order": {"probes": 8},
            "finite_difference": calibration,
        }
        scorer = UtilityScorer(
            model.model, [anchors], loss=SampleTask(), estimator=estimator, step_size=1e-4, **needs.get(estimator, {})
        )
        scorer.verify(batch)
        found[estimator] = scorer(batch).utility
    size = found["exact"].abs().max()
    for estimator, utility in found.items():
        assert (utility - found["exact"]).abs().max() <= 0.01 * size, estimator


@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
@pytest.mark.parametrize("name", EACH)
def test_a_trained_model_is_saved_and_answers_the_same(name: str, lora: bool, tmp_path: Path) -> None:
    path = str(tiny_families.save(name, tmp_path / "model"))
    settings = Target(path=path, dtype="float32", lora=Lora(rank=2) if lora else None)
    model = MultimodalModel.load(settings, "target", Training())
    samples = tiny_families.samples(name)
    (batch,) = model.batches(samples, 100_000)
    before = model.losses(batch).mean()
    optimizer = torch.optim.SGD(model.trained.values(), lr=0.05)
    before.backward()
    optimizer.step()
    assert model.losses(batch).mean() < before
    model.save(tmp_path / "saved")
    again = MultimodalModel.load(Model(path=str(tmp_path / "saved")), "proxy")
    assert torch.allclose(again.losses(batch), model.losses(batch), atol=1e-5)
    evaluation = Evaluation(max_new_tokens=4, batch_size=3)
    answers = generate_answers(model, samples, evaluation)
    assert all(answers)
    assert generate_answers(again, samples, evaluation) == answers
    alone = [generate_answers(again, [sample], evaluation)[0] for sample in samples]
    assert alone == answers


@pytest.mark.parametrize("name", EACH)
def test_the_output_layer_runs_at_answers_alone_and_losses_stay(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    (batch,) = model.batches(tiny_families.samples(name), 100_000)
    weight = model.model.get_output_embeddings().weight

    def gradient(losses: Tensor) -> Tensor:
        (found,) = torch.autograd.grad((losses * torch.arange(1, 1 + len(losses))).sum(), weight)
        return found

    whole = per_sample_losses(next_token_logits(model.model, batch), batch.labels)
    expected, seen = gradient(whole), list[int]()
    model.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    losses = model.losses(batch)
    columns = int((batch.labels[:, 1:] != IGNORED).any(0).sum())
    assert seen == [columns]
    assert columns < batch.labels.shape[1] - 1
    # Norm layers round to float32 whatever the dtype.
    assert torch.allclose(losses, whole, rtol=1e-6, atol=0)
    assert torch.allclose(gradient(losses), expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))
