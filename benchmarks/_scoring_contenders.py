"""The ways of scoring that `bench_scoring.py` times, and what they are timed on."""

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

from ostlight.gradients.bends import Bend
from ostlight.gradients.engine import GradientDots
from ostlight.gradients.forward_mode import directional_derivatives, find_step
from ostlight.gradients.probes import Anchors, mean_gradients
from ostlight.gradients.responses import BENDS, LIKELIEST, SNAPSHOTS, Responses
from ostlight.gradients.rows import RowMap
from ostlight.gradients.scope import scoped_parameters, unwrapped
from ostlight.model.losses import IGNORED, per_sample_losses

ANCHORS = 100
PROBES = (4, 16, 64)
DIRECTIONS = 32
NAIVE_PROBES = 16

Inputs = dict[str, Tensor]


@dataclass
class Setting:
    """One model, its batch, its anchors and the targets, ready to be scored in any way.

    Attributes:
        targets: ``[1 + K, *shape]`` per parameter for the largest K that fits: the anchors' mean gradient, then random
            probes. Smaller K take the first ones.
    """

    shape: Shape
    scope: str
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
    def of(cls, shape: Shape, scope: str, device: str, target_dtype: torch.dtype, counts: tuple[int, ...]) -> Setting:
        """``counts`` are the K wanted; those whose targets exceed half of the free memory are not to be had."""
        torch.manual_seed(0)
        trained = shape.build().to(device, shape.dtype).eval()
        model = copy.deepcopy(trained)
        if scope == "lora":
            model = with_adapters(model)
        parameters = scoped_parameters(model, scope)
        wanted = {id(parameter) for parameter in parameters.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        inputs, labels = shape.samples(trained, shape.batch, 1, device)
        batches = [range(k, min(k + shape.batch, ANCHORS)) for k in range(0, ANCHORS, shape.batch)]
        anchors = Anchors(
            lambda batch: (logits_of(model, batch[0]), batch[1]),
            [(list(rows), shape.samples(trained, len(rows), 100 + rows[0], device)) for rows in batches],
            ["all"] * ANCHORS,
        )
        direction = mean_gradients(anchors, parameters)["all"]
        one_target = sum(part.numel() for part in direction.values()) * target_dtype.itemsize
        most = largest_fitting(counts, one_target, free_bytes(device))
        targets = {
            name: torch.cat([part[None].to(target_dtype), probes_like(part, most, target_dtype)])
            for name, part in direction.items()
        }
        return cls(shape, scope, device, model, trained, parameters, inputs, labels, anchors, direction, targets)

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
class Contender:
    """One way of scoring.

    Attributes:
        name: ``key=value`` pairs.
        run: scores; ``[samples, 1 + K]`` inner products with the targets, except for ``exact``.
        samples: scored by one call.
        may_fail: some models or dtypes are beyond it, which is said and not hidden.
    """

    name: str
    run: Callable[[], Tensor]
    samples: int
    may_fail: bool = False


def contenders_of(setting: Setting, probes: tuple[int, ...] = PROBES) -> list[Contender]:
    """Those whose targets there are."""
    n = setting.shape.batch
    probes = tuple(k for k in probes if k <= setting.num_probes)
    found = [
        Contender("estimator=exact", at_first_call(lambda: exact(setting)), 1),
        Contender("estimator=first_order how=central_difference", central_difference(setting), n, may_fail=True),
        Contender("estimator=first_order how=engine", by_engine(setting, 0), n),
        *(Contender(f"estimator=second_order K={k}", by_engine(setting, k), n) for k in probes),
    ]
    if setting.num_probes >= DIRECTIONS:
        responses = at_first_call(lambda: by_responses(setting, DIRECTIONS))
        found.append(Contender(f"estimator=projected K={DIRECTIONS}", responses, n))
    if NAIVE_PROBES in probes:
        k = NAIVE_PROBES
        found += [
            Contender(f"estimator=second_order K={k} norms=off", by_engine(setting, k, norms=False), n),
            Contender(f"estimator=naive_loop K={k}", loop(setting, k), n),
            Contender(f"estimator=naive_vmap K={k}", vmapped(setting, k), n, may_fail=True),
        ]
    return found


def at_first_call(prepare: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """What takes memory is prepared in the contender's own turn, where running out of it costs no other's figures."""
    prepared: list[Callable[[], Tensor]] = []

    def run() -> Tensor:
        if not prepared:
            prepared.append(prepare())
        return prepared[0]()

    return run


def training_step(setting: Setting) -> Callable[[], Tensor]:
    model = setting.trained
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> Tensor:
        loss = losses_of(model, setting.inputs, setting.labels).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def by_engine(setting: Setting, probes: int, norms: bool = True) -> Callable[[], Tensor]:
    targets, rows = setting.first_targets(probes), RowMap(setting.model)
    return lambda: setting.engine.products(setting.losses, rows.of(setting.inputs), targets, squared_norms=norms).dots


def by_responses(setting: Setting, count: int) -> Callable[[], Tensor]:
    """The inner products and then the anchors' cross-entropy at every sample's moved logits, directions random."""
    products = by_engine(setting, count)
    labels = torch.cat([batch[1] for _, batch in setting.anchors.batches])
    tokens, words = (
        int((labels[:, 1:] != IGNORED).sum()),
        min(LIKELIEST + 2, setting.trained.config.get_text_config().vocab_size),
    )
    generator = torch.Generator(setting.device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device)

    bends, eta = math.ceil(BENDS * count), 1e-3
    ids = torch.zeros(tokens, words, dtype=torch.long, device=setting.device)
    weights = torch.full((1, tokens), 1 / tokens, dtype=torch.float64, device=setting.device)
    ways = eta * drawn(count + bends, tokens, words)
    bent = drawn(SNAPSHOTS * count, bends).double()
    places = torch.arange(len(bent), device=setting.device)
    responses = Responses(ids, drawn(tokens, words), weights, ways[:count], places, ways[count:], bent)
    bend = Bend.of(drawn(len(bent), count).double(), bent, eta)

    def run() -> Tensor:
        dots = products()
        phi = dots[:, 1:].double()
        responses.falls(phi, eta, bend(phi))
        return dots

    return run


def central_difference(setting: Setting) -> Callable[[], Tensor]:
    given = (setting.losses, setting.parameters, setting.direction)
    sizes: list[float] = []

    def run() -> Tensor:
        # The step is found once for a proxy, on a few samples; the first call, which is not timed, pays for it.
        if not sizes:
            sizes.append(find_step(*given, setting.model).size)
        return directional_derivatives(*given, sizes[0], setting.model)[:, None]

    return run


def exact(setting: Setting, eta: float = 1e-3) -> Callable[[], Tensor]:
    """One sample's step, the loss of all anchors, and the step taken back, as ``ostlight.utility.exact`` does it.

    In the weights' own dtype, which for bf16 is quicker than right: real scores need fp32 copies.
    """
    parameters = list(setting.parameters.values())
    kept = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def anchor_loss() -> Tensor:
        each = [losses_of(setting.model, *batch) for _, batch in setting.anchors.batches]
        return torch.cat(each).double().mean()

    base = anchor_loss()

    def run() -> Tensor:
        gradient = setting.gradient(0)
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


def loop(setting: Setting, probes: int) -> Callable[[], Tensor]:
    targets = setting.first_targets(probes)

    def run() -> Tensor:
        return torch.stack([dots(setting.gradient(row), targets) for row in range(setting.shape.batch)])

    return run


def dots(gradient: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """``[M]``"""
    parts = [(targets[name].flatten(1) @ g.flatten().to(targets[name].dtype)).double() for name, g in gradient.items()]
    return torch.stack(parts).sum(0)


def vmapped(setting: Setting, probes: int) -> Callable[[], Tensor]:
    targets = {name: target.flatten(1).T for name, target in setting.first_targets(probes).items()}
    plain = {name: parameter.detach() for name, parameter in setting.parameters.items()}

    def loss(parameters: dict[str, Tensor], inputs: Inputs, labels: Tensor) -> Tensor:
        one = {name: value[None] for name, value in inputs.items()} | {"use_cache": False}
        logits = torch.func.functional_call(setting.model, parameters, (), one).logits[0, :-1]
        return F.cross_entropy(logits.float(), labels[1:], ignore_index=IGNORED)

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def run() -> Tensor:
        with eager_attention(setting.model):
            gradients = per_sample(plain, setting.inputs, setting.labels)
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
