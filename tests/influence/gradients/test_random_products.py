"""Random products of gradients against explicit projections in float64, and their mean over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import families
import oracle
import pytest
import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence import Classification, UtilityScorer, anchor_products, kronecker_preconditioner
from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Block, Preconditioner, adam_preconditioner
from ostlight.influence.sample_gradient import dot, sample_gradient
from ostlight.influence.simulated_step import SimulatedStep

Tiny = Callable[..., nn.Module]


class Words(nn.Module):
    """An embedding, a wide layer, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide, self.norm = nn.Embedding(9, 12), nn.Linear(12, 20), nn.LayerNorm(20)
        self.head = nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.wide(self.table(ids))))).mean(1)


@pytest.fixture
def words() -> Words:
    torch.manual_seed(0)
    return Words().double().eval()


@pytest.fixture
def singles() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randint(0, 9, (1, 5)), torch.randint(0, 3, (1,))) for _ in range(30)]


def preconditioners(model: nn.Module, singles: list[tuple[Tensor, Tensor]]) -> Iterator[Preconditioner | None]:
    parameters = dict(model.named_parameters())
    yield None
    moments = {name: torch.rand_like(p) + 0.01 for name, p in parameters.items()}
    yield adam_preconditioner(parameters, moments)
    for kind in ("kfac", "ekfac"):
        yield kronecker_preconditioner(model, Classification(), parameters, singles, kind)


def test_images_and_text_of_a_vision_language_model(tiny: Tiny) -> None:
    model = tiny("llava").eval()
    parameters = select_parameters(model, "all")
    inputs = families.batch("llava")
    directions = RandomDirections(parameters, 48, seed=0)
    rows = RowMap(model).of({name: value for name, value in inputs.items() if name != "labels"})
    engine = GradientDots(model, parameters)
    found = engine.products(lambda: oracle.loss_of(model, inputs), rows, random=directions)
    for row in range(len(found.losses)):
        gradient = oracle.gradient(parameters, partial(lambda k: oracle.loss_of(model, inputs)[k], row))
        expected = directions.products(gradient)
        assert oracle.relative_error(found.random_products[row], expected) < 1e-9


def test_the_mean_over_seeds_is_the_inner_product(words, singles) -> None:
    parameters = dict(words.named_parameters())
    (_, g), (_, v) = (sample_gradient(words, Classification(), parameters, one) for one in singles[:2])
    for preconditioner in preconditioners(words, singles):
        expected = float(dot(g, v if preconditioner is None else {n: preconditioner.apply(n, x) for n, x in v.items()}))
        estimates = []
        for seed in range(120):
            directions = RandomDirections(parameters, 24, seed, preconditioner)
            estimates.append(directions.products(g) @ directions.vector_products(v))
        found = torch.stack(estimates)
        error = float(found.std() / len(found) ** 0.5)
        assert error > 0
        assert abs(float(found.mean()) - expected) < 4 * error


def test_parameters_of_any_shape_are_unbiased() -> None:
    torch.manual_seed(0)
    shapes = [(), (5,), (40,), (6, 7), (3, 4, 5), (1, 6, 2), (4, 3, 2, 2)]
    parameters = {str(k): nn.Parameter(torch.randn(shape).double()) for k, shape in enumerate(shapes)}
    g, v = ({name: torch.randn_like(p) for name, p in parameters.items()} for _ in range(2))
    moments = {name: torch.rand_like(p) + 0.01 for name, p in parameters.items()}
    for preconditioner in (None, adam_preconditioner(parameters, moments)):
        expected = float(dot(g, v if preconditioner is None else {n: preconditioner.apply(n, x) for n, x in v.items()}))
        made = (RandomDirections(parameters, 12, seed, preconditioner) for seed in range(100))
        found = torch.stack([one.products(g) @ one.vector_products(v) for one in made])
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / len(found) ** 0.5


def test_enough_products_of_one_layer_lose_nothing(words, singles) -> None:
    parameters = {"wide.weight": words.wide.weight}
    (_, g), (_, v) = (sample_gradient(words, Classification(), parameters, one) for one in singles[:2])
    for preconditioner in preconditioners(words, singles):
        directions = RandomDirections(parameters, 20 * 12, 0, preconditioner)
        expected = float(dot(g, v if preconditioner is None else {n: preconditioner.apply(n, x) for n, x in v.items()}))
        assert float(directions.products(g) @ directions.vector_products(v)) == pytest.approx(expected, rel=1e-9)


def test_utilities_for_other_anchors_from_a_scorers_products(words, singles) -> None:
    """With so many products that only what layers have with one another is left to chance."""
    parameters = select_parameters(words, "all")
    for preconditioner in preconditioners(words, singles):
        given = {"parameters": "all", "loss": Classification(), "step_size": 0.1, "preconditioner": preconditioner}
        scorer = UtilityScorer(words, singles[:5], estimator="first_order", random_products=4096, seed=7, **given)
        others = UtilityScorer(words, singles[5:12], estimator="first_order", **given)
        pool = Classification().together(singles[12:])
        scores = scorer(pool)
        assert scores.random_products is not None
        directions = RandomDirections(parameters, 4096, 7, preconditioner)
        step = SimulatedStep(words, parameters, Anchors(singles[5:12], Classification()), 0.1, preconditioner)
        found = scores.random_products.double() @ anchor_products(step, directions).mean(0)
        expected = others(pool).alignment
        assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.9


def test_a_parameter_without_a_step_has_no_part(words) -> None:
    parameters = dict(words.named_parameters())
    blocks = {
        name: Block(torch.zeros_like(p) if name == "wide.weight" else torch.ones_like(p))
        for name, p in parameters.items()
    }
    directions = RandomDirections(parameters, 16, 0, Preconditioner(blocks))
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()} | {"wide.weight": words.wide.weight}
    assert not directions.products(gradient).any()
    assert not directions.vector_products(gradient).any()


@pytest.mark.parametrize(("count", "estimator"), [(0, "first_order"), (8, "exact")])
def test_what_cannot_be_taken_is_refused(words, singles, count: int, estimator: str) -> None:
    given = {"parameters": "all", "loss": Classification(), "step_size": 0.1}
    with pytest.raises(InfluenceError, match="random"):
        UtilityScorer(words, singles[:5], estimator=estimator, random_products=count, **given)
