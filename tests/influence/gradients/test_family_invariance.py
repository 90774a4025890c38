"""Every estimator gives a sample the same score in any batch, through the classes of every family.

Padding, stacking of pictures and positions are the project's own (``Collator``); what a family's processor does to a
sample alone is not part of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

from ostlight.config.schema import Training
from ostlight.influence.anchors import Anchors
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import SEQUENCE_KEYS, Encoded
from ostlight.models.influence_task import SampleTask
from ostlight.models.load import collator_for
from ostlight.models.module import MultimodalModel

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3}
ETA = 0.05
SEEDS = (1, 2)
ARRANGEMENTS: tuple[tuple[str, list[list[int]]], ...] = (
    ("right", [[0, 1, 2, 3, 4, 5]]),
    ("left", [[4, 1, 0, 5, 2, 3]]),
    ("right", [[5, 0], [3, 4, 1, 2]]),
    ("left", [[2], [1], [0], [5], [4], [3]]),
)
"""Padding side, and the samples of each batch: six of them, a third without a picture."""


def encoded(family: str, seeds: Sequence[int]) -> list[Encoded]:
    made = []
    for seed in seeds:
        whole = families.batch(family, seed)
        for k in range(len(families.IMAGES_OF_SAMPLE)):
            one = families.alone(family, whole, k)
            inputs = {key: v[0] if key in SEQUENCE_KEYS else v for key, v in one.items()}
            labels = inputs.pop("labels")[0]
            inputs.pop("attention_mask")
            made.append(Encoded(inputs, labels))
    return made


def batched(model: MultimodalModel, rows: Sequence[int], parts: Sequence[Encoded]) -> Batch:
    samples: list[Any] = [SimpleNamespace(id=str(k)) for k in rows]
    return model.collator.batch(samples, [parts[k] for k in rows])


def first_order(
    model: MultimodalModel, parameters: dict[str, nn.Parameter], anchors: Anchors, singles: list[Batch]
) -> GradientProducts:
    return SecondOrder(SimulatedStep(model.model, parameters, anchors, ETA), 0)


def second_order(
    model: MultimodalModel, parameters: dict[str, nn.Parameter], anchors: Anchors, singles: list[Batch]
) -> GradientProducts:
    return SecondOrder(SimulatedStep(model.model, parameters, anchors, ETA), 4)


def projected(
    model: MultimodalModel, parameters: dict[str, nn.Parameter], anchors: Anchors, singles: list[Batch]
) -> GradientProducts:
    return Projected(SimulatedStep(model.model, parameters, anchors, ETA), singles, 4)


def exact(model: MultimodalModel, parameters: dict[str, nn.Parameter], anchors: Anchors, singles: list[Batch]) -> Exact:
    return Exact(SimulatedStep(model.model, parameters, anchors, ETA))


def forward_only(
    model: MultimodalModel, parameters: dict[str, nn.Parameter], anchors: Anchors, singles: list[Batch]
) -> FiniteDifference:
    return FiniteDifference(SimulatedStep(model.model, parameters, anchors, ETA), singles)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float64, id="float64"), pytest.param(torch.float32, id="float32", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "estimator", [first_order, second_order, pytest.param(projected, marks=pytest.mark.slow), exact, forward_only]
)
@pytest.mark.parametrize("family", families.FAMILIES | families.WITHOUT_PROCESSOR)
def test_scores_do_not_depend_on_batch_padding_or_order(
    tiny: Callable[..., nn.Module],
    family: str,
    estimator: Callable[..., GradientProducts | Exact | FiniteDifference],
    dtype: torch.dtype,
) -> None:
    bare: Any = tiny(family).to(dtype)
    # What is loaded by default; the eager one casts its fp64 mask to fp32, where a row of padding alone becomes NaN.
    bare.set_attn_implementation("sdpa")
    encoder: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    model = MultimodalModel(bare, encoder, collator_for(bare, encoder), Training()).to(dtype)
    parameters = select_parameters(bare, "blocks")
    pool, trusted = encoded(family, SEEDS), encoded(family, (3, 4))
    tables: list[Tensor] = []
    for side, batches in ARRANGEMENTS:
        model.collator.side = side  # type: ignore[assignment]
        anchors = Anchors([batched(model, rows, trusted) for rows in batches], SampleTask(), indices=batches)
        scorer = estimator(model, parameters, anchors, [batched(model, [k], pool) for k in range(6)])
        found = torch.empty(6, dtype=torch.float64)
        for rows in batches:
            returned = scorer.columns(batched(model, rows, pool))["score"]
            found[rows] = torch.as_tensor(returned, dtype=torch.float64)
        tables.append(found)
    worst = max(float((other - tables[0]).abs().max()) for other in tables[1:])
    assert worst <= BOUNDS[dtype] * float(tables[0].abs().median())
