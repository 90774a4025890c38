"""The implementations of scoring that `bench_scoring.py` times, and what they are timed on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from _scoring_shapes import Shape
from torch import Tensor, nn

from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.curvature_correction import CurvatureCorrection
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.forward_mode import directional_derivatives, find_difference_step
from ostlight.influence.gradients.probes import mean_gradients
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.responses import DEVIATION_SHARE, LIKELIEST, SNAPSHOTS, StepResponses
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters, unwrapped
from ostlight.influence.task import Task
from ostlight.models.losses import IGNORED, per_sample_losses

ANCHORS = 100
PROBES = (4, 16, 64)
DIRECTIONS = 32
PRODUCTS = 1024
NAIVE_PROBES = 16

Inputs = dict[str, Tensor]


class _PairTask(Task):
    """Batches are ``(inputs, labels)``."""

    def logits(self, model: nn.Module, batch: tuple[Inputs, Tensor]) -> tuple[Tensor, Tensor]:
        return logits_of(model, batch[0])[:, :-1], batch[1][:, 1:]


@dataclass
class ScoringContext:
    """One model, its batch, its anchors and the targets, ready to be scored in any way.

    Attributes:
        targets: ``[1 + K, *shape]`` per parameter for the largest K that fits: the anchors' mean gradient, then random
            probes. Smaller K take the first ones.
    """

    shape: Shape
    parameter_set: str
    device: str
    model: nn.Module
    trained: nn.Module
    parameters: dict[str, nn.Parameter]
    inputs: Inputs
    labels: Tensor
    anchors: Anchors
    direction: dict[str, Tensor]
    targets: dict[str, Tensor]
    engine: GradientDots = field(init=False)

    def __post_init__(self) -> None:
        self.engine = GradientDots(self.model, self.parameters)

    @classmethod
    def of(
        cls, shape: Shape, parameter_set: str, device: str, target_dtype: torch.dtype, counts: tuple[int, ...]
    ) -> ScoringContext:
        """``counts`` are the K wanted; those whose targets exceed half of the free memory are not to be had."""
        torch.manual_seed(0)
        trained = shape.build().to(device, shape.dtype).eval()
        model = copy.deepcopy(trained)
        if parameter_set == "lora":
            model = with_adapters(model)
        parameters = select_parameters(model, parameter_set)
        wanted = {id(parameter) for parameter in parameters.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        inputs, labels = shape.samples(trained, shape.batch, 1, device)
        batches = [range(k, min(k + shape.batch, ANCHORS)) for k in range(0, ANCHORS, shape.batch)]
        anchors = Anchors([shape.samples(trained, len(rows), 100 + rows[0], device) for rows in batches], _PairTask())
        direction = mean_gradients(model, anchors, parameters)[""]
        one_target = sum(part.numel() for part in direction.values()) * target_dtype.itemsize
        most = largest_fitting(counts, one_target, free_bytes(device))
        targets = {
            name: torch.cat([part[None].to(target_dtype), probes_like(part, most, target_dtype)])
            for name, part in direction.items()
        }
        return cls(
            shape, parameter_set, device, model, trained, parameters, inputs, labels, anchors, direction, targets
        )

    @property
    def known(self) -> list[Tensor]:
        """What was there before a pass."""
        models = [*self.model.parameters(), *self.model.buffers(), *self.trained.parameters(), *self.trained.buffers()]
        return [*models, *self.inputs.values(), self.labels, *self.targets.values(), *self.direction.values()]

    def losses(self) -> Tensor:
        return losses_of(self.model, self.inputs, self.labels)

    def single(self, row: int) -> tuple[Inputs, Tensor]:
        return {name: value[row : row + 1] for name, value in self.inputs.items()}, self.labels[row : row + 1]

    @property
    def num_probes(self) -> int:
        return len(next(iter(self.targets.values()))) - 1

    @property
    def target_bytes(self) -> int:
        """Of one target."""
        return sum(target[0].nbytes for target in self.targets.values())

    def first_targets(self, probes: int) -> dict[str, Tensor]:
        return {name: target[: 1 + probes] for name, target in self.targets.items()}

    def gradient(self, row: int) -> dict[str, Tensor]:
        """One sample's, by plain autograd on the sample alone."""
        loss = losses_of(self.model, *self.single(row))[0]
        return dict(zip(self.parameters, torch.autograd.grad(loss, list(self.parameters.values())), strict=True))


def free_bytes(device: str) -> float:
    if device == "cpu":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def largest_fitting(counts: tuple[int, ...], one_target: int, free: float) -> int:
    """The largest K whose 1 + K targets take at most half of what is free, 0 where none does."""
    return max((k for k in counts if (1 + k) * one_target <= free / 2), default=0)


def with_adapters(model: nn.Module) -> nn.Module:
    """Rank 8 on every linear layer of the language model's blocks, none of them zero."""
    import peft

    layers = r".*layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=layers, r=8, init_lora_weights=False)).eval()


def probes_like(part: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(part.device).manual_seed(part.numel())
    # One at a time: all of a large model's probes in fp32 would be twice what they are in bf16.
    probes = torch.empty(count, *part.shape, dtype=dtype, device=part.device)
    for probe in probes:
        probe.copy_(torch.randn(part.shape, generator=generator, device=part.device))
    return probes


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    return model(**inputs, use_cache=False).logits


def losses_of(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    return per_sample_losses(logits_of(model, inputs), labels)


@dataclass(frozen=True)
class Implementation:
    """One implementation of scoring.

    Attributes:
        name: ``key=value`` pairs.
        run: scores; ``[samples, 1 + K]`` inner products with the targets, except for ``exact``.
        samples: scored by one call.
        may_fail: some models or dtypes are not supported; a failure is printed and does not fail the benchmark.
    """

    name: str
    run: Callable[[], Tensor]
    samples: int
    may_fail: bool = False


def implementations(context: ScoringContext, probes: tuple[int, ...] = PROBES) -> list[Implementation]:
    """The implementations that the number of targets allows."""
    n = context.shape.batch
    probes = tuple(k for k in probes if k <= context.num_probes)
    found = [
        Implementation("estimator=exact", at_first_call(lambda: exact(context)), 1),
        Implementation("estimator=finite_difference", central_difference(context), n, may_fail=True),
        Implementation("estimator=first_order", by_engine(context, 0), n),
        Implementation(f"estimator=first_order random_products={PRODUCTS}", with_products(context, PRODUCTS), n),
        *(Implementation(f"estimator=second_order K={k}", by_engine(context, k), n) for k in probes),
    ]
    if context.num_probes >= DIRECTIONS:
        responses = at_first_call(lambda: by_responses(context, DIRECTIONS))
        by_anchor = at_first_call(lambda: by_responses(context, DIRECTIONS, by_anchor=True))
        found.append(Implementation(f"estimator=projected rank={DIRECTIONS}", responses, n))
        found.append(Implementation(f"estimator=projected rank={DIRECTIONS} utility_by_anchor", by_anchor, n))
    if NAIVE_PROBES in probes:
        k = NAIVE_PROBES
        found += [
            Implementation(f"estimator=second_order K={k} norms=off", by_engine(context, k, norms=False), n),
            Implementation(f"estimator=naive_loop K={k}", loop(context, k), n),
            Implementation(f"estimator=naive_vmap K={k}", vmapped(context, k), n, may_fail=True),
        ]
    return found


def at_first_call(prepare: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Prepares at the first call: running out of memory there costs no other implementation's figures."""
    prepared: list[Callable[[], Tensor]] = []

    def run() -> Tensor:
        if not prepared:
            prepared.append(prepare())
        return prepared[0]()

    return run


def training_step(context: ScoringContext) -> Callable[[], Tensor]:
    model = context.trained
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> Tensor:
        loss = losses_of(model, context.inputs, context.labels).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def by_engine(context: ScoringContext, probes: int, norms: bool = True) -> Callable[[], Tensor]:
    targets, rows = context.first_targets(probes), RowMap(context.model)
    return lambda: context.engine.products(context.losses, rows.of(context.inputs), targets, squared_norms=norms).dots


def with_products(context: ScoringContext, count: int) -> Callable[[], Tensor]:
    """First order, and random products of every gradient in the same pass."""
    targets, rows = context.first_targets(0), RowMap(context.model)
    directions = RandomDirections(context.parameters, count, seed=0)

    def run() -> Tensor:
        given = (context.losses, rows.of(context.inputs), targets)
        return context.engine.products(*given, squared_norms=True, random=directions).dots

    return run


def by_responses(context: ScoringContext, count: int, by_anchor: bool = False) -> Callable[[], Tensor]:
    """The inner products and then the anchors' cross-entropy at every sample's moved logits, directions random."""
    products = by_engine(context, count)
    labels = torch.cat([batch[1] for batch in context.anchors.batches])
    positions = int((labels[:, 1:] != IGNORED).sum())
    candidates = min(LIKELIEST + 2, context.trained.config.get_text_config().vocab_size)
    generator = torch.Generator(context.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=context.device)

    extra, eta = math.ceil(DEVIATION_SHARE * count), 1e-3
    directions = eta * random(count + extra, positions, candidates)
    deviations = random(SNAPSHOTS * count, extra).double()
    responses = StepResponses(
        token_ids=torch.zeros(positions, candidates, dtype=torch.long, device=context.device),
        logits=random(positions, candidates),
        weights=torch.full((1, positions), 1 / positions, dtype=torch.float64, device=context.device),
        anchors=torch.arange(positions, device=context.device) % ANCHORS,
        directions=directions[:count],
        steps=torch.arange(len(deviations), device=context.device),
        deviation_directions=directions[count:],
        deviations=deviations,
    )
    correction = CurvatureCorrection.fit(random(len(deviations), count).double(), deviations, eta)
    weights = torch.cat([responses.weights, responses.anchor_weights]) if by_anchor else None

    def run() -> Tensor:
        dots = products()
        phi = dots[:, 1:].double()
        responses.loss_decrease(phi, eta, correction(phi), weights)
        return dots

    return run


def central_difference(context: ScoringContext) -> Callable[[], Tensor]:
    given = (context.losses, context.parameters, context.direction)
    sizes: list[float] = []

    def run() -> Tensor:
        # The step is found once for a proxy, on a few samples; the first call, which is not timed, pays for it.
        if not sizes:
            sizes.append(find_difference_step(*given, context.model).size)
        return directional_derivatives(*given, sizes[0], context.model)[:, None]

    return run


def exact(context: ScoringContext, eta: float = 1e-3) -> Callable[[], Tensor]:
    """One sample's step, the loss of all anchors, and the step taken back, as
    ``ostlight.influence.estimators.exact`` does it.

    In the weights' own dtype, which for bf16 is quicker than right: real scores need fp32 copies.
    """
    parameters = list(context.parameters.values())
    kept = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def anchor_loss() -> Tensor:
        each = [losses_of(context.model, *batch) for batch in context.anchors.batches]
        return torch.cat(each).double().mean()

    base = anchor_loss()

    def run() -> Tensor:
        gradient = context.gradient(0)
        with torch.no_grad():
            try:
                for parameter, g in zip(parameters, gradient.values(), strict=True):
                    parameter.sub_(g, alpha=eta)
                utility = base - anchor_loss()
            finally:
                for parameter, before in zip(parameters, kept, strict=True):
                    parameter.copy_(before)
        return utility[None, None]

    return run


def loop(context: ScoringContext, probes: int) -> Callable[[], Tensor]:
    targets = context.first_targets(probes)

    def run() -> Tensor:
        return torch.stack([dots(context.gradient(row), targets) for row in range(context.shape.batch)])

    return run


def dots(gradient: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """``[M]``"""
    parts = [(targets[name].flatten(1) @ g.flatten().to(targets[name].dtype)).double() for name, g in gradient.items()]
    return torch.stack(parts).sum(0)


def vmapped(context: ScoringContext, probes: int) -> Callable[[], Tensor]:
    targets = {name: target.flatten(1).T for name, target in context.first_targets(probes).items()}
    plain = {name: parameter.detach() for name, parameter in context.parameters.items()}

    def loss(parameters: dict[str, Tensor], inputs: Inputs, labels: Tensor) -> Tensor:
        one = {name: value[None] for name, value in inputs.items()} | {"use_cache": False}
        logits = torch.func.functional_call(context.model, parameters, (), one).logits[0, :-1]
        return F.cross_entropy(logits.float(), labels[1:], ignore_index=IGNORED)

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def run() -> Tensor:
        with eager_attention(context.model):
            gradients = per_sample(plain, context.inputs, context.labels)
        parts = [(g.flatten(1).to(targets[name].dtype) @ targets[name]).double() for name, g in gradients.items()]
        return torch.stack(parts).sum(0)

    return run


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """vmap knows no batched form of the fused attention and would fall back to a loop."""
    core = unwrapped(model)
    before = core.config._attn_implementation
    core.set_attn_implementation("eager")
    try:
        yield
    finally:
        core.set_attn_implementation(before)
