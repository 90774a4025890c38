"""What it costs to score a sample, in plain training steps on that sample, and what memory it takes.

    python benchmarks/bench_scoring.py --device cpu --out benchmarks/results/bench_scoring.jsonl [--shape digitmath]
    python benchmarks/bench_scoring.py --device cpu --out benchmarks/results/bench_scoring.jsonl --scope lora
    python benchmarks/bench_scoring.py --device cuda --out benchmarks/results/bench_scoring.jsonl --shape 1b

A training step is forward, full backward and AdamW of all parameters, on the same batch. Contenders take turns, in
another order each round, each between two training steps; a figure is the median of the rounds' ratios. Memory is what
a pass holds beyond model and targets, over what the forward pass of a training step leaves for its backward pass.

Weights, tokens and probes are random: none of them changes what is computed. `exact` is timed on one sample a round.
Engine passes take gradient norms along, as the `ost` selector does; `norms=off` says what they cost.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _kernels import Spread, refuse_unless
from _memory import peak_bytes
from _record import Recorder
from _scoring_shapes import SHAPES, Shape
from torch import Tensor, nn

from ostlight.errors import OstlightError
from ostlight.gradients.engine import AGREEMENT, GradientDots
from ostlight.gradients.forward_mode import directional_derivatives, find_step
from ostlight.gradients.probes import Anchors, mean_gradients
from ostlight.gradients.rows import RowMap
from ostlight.gradients.scope import scoped_parameters, unwrapped
from ostlight.model.losses import IGNORED, per_sample_losses

ANCHORS = 100
PROBES = (4, 16, 64)
NAIVE_PROBES = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Inputs = dict[str, Tensor]


@dataclass
class Setting:
    """One model, its batch, its anchors and the targets, ready to be scored in any way.

    Attributes:
        targets: ``[1 + K, *shape]`` per parameter for the largest K: the anchors' mean gradient, then random probes.
            Smaller K take the first ones.
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
    def of(cls, shape: Shape, scope: str, device: str, target_dtype: torch.dtype, most_probes: int) -> Setting:
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
        targets = {
            name: torch.cat([part[None].to(target_dtype), probes_like(part, most_probes, target_dtype)])
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

    def first_targets(self, probes: int) -> dict[str, Tensor]:
        return {name: target[: 1 + probes] for name, target in self.targets.items()}

    def gradient(self, row: int) -> dict[str, Tensor]:
        """One sample's, by plain autograd on the sample alone."""
        loss = losses_of(self.model, *self.single(row))[0]
        return dict(zip(self.parameters, torch.autograd.grad(loss, list(self.parameters.values())), strict=True))


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
    n = setting.shape.batch
    found = [
        Contender("estimator=exact", exact(setting), 1),
        Contender("estimator=first_order how=central_difference", central_difference(setting), n, may_fail=True),
        Contender("estimator=first_order how=engine", by_engine(setting, 0), n),
        *(Contender(f"estimator=second_order K={k}", by_engine(setting, k), n) for k in probes),
    ]
    if NAIVE_PROBES in probes:
        k = NAIVE_PROBES
        found += [
            Contender(f"estimator=second_order K={k} norms=off", by_engine(setting, k, norms=False), n),
            Contender(f"estimator=naive_loop K={k}", loop(setting, k), n),
            Contender(f"estimator=naive_vmap K={k}", vmapped(setting, k), n, may_fail=True),
        ]
    return found


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


def central_difference(setting: Setting) -> Callable[[], Tensor]:
    sizes: list[float] = []

    def run() -> Tensor:
        # The step is found once for a proxy, on a few samples; the warm-up rounds pay for it.
        if not sizes:
            sizes.append(find_step(setting.losses, setting.parameters, setting.direction).size)
        return directional_derivatives(setting.losses, setting.parameters, setting.direction, sizes[0])[:, None]

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
            for parameter, g in zip(parameters, gradient.values(), strict=True):
                parameter.sub_(g, alpha=eta)
            utility = base - anchor_loss()
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


def usable(setting: Setting, contenders: list[Contender]) -> list[Contender]:
    """Those whose inner products agree with plain autograd on one sample.

    Raises:
        SystemExit: one of ours does not.
    """
    gradient = {name: g.double() for name, g in setting.gradient(0).items()}
    length = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
    most = max(setting.targets.values(), key=len)
    expected = torch.zeros(len(most), dtype=torch.float64, device=setting.device)
    squared = torch.zeros_like(expected)
    for name, g in gradient.items():
        for k, target in enumerate(setting.targets[name]):
            expected[k] += (target.double() * g).sum()
            squared[k] += target.double().square().sum()
    scale = length * squared.sqrt()
    allowed = max(AGREEMENT[setting.shape.dtype], AGREEMENT[most.dtype])
    kept = []
    for contender in contenders:
        try:
            found = contender.run()[0].double()
        except (OstlightError, RuntimeError, ValueError, NotImplementedError) as error:
            if not contender.may_fail:
                raise
            print(f"left out: {contender.name}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        if contender.name == "estimator=exact":
            refuse_unless(bool(found.isfinite().all()), f"{contender.name} is {found}")
        else:
            error = float(((found - expected[: len(found)]).abs() / scale[: len(found)]).max())
            what = f"{contender.name} is {error:.3g} off plain autograd, {allowed:.3g} is allowed"
            refuse_unless(error <= allowed, what)
        kept.append(contender)
    return kept


@dataclass(frozen=True)
class Figures:
    """Of one contender, a value a round; ``memory`` is over the activations of a training step."""

    contender: Contender
    ratios: list[float]
    seconds: list[float]
    memory: float


def measure(setting: Setting, contenders: list[Contender], rounds: int) -> list[Figures]:
    step = training_step(setting)
    step()
    activations = peak_bytes(
        lambda: losses_of(setting.trained, setting.inputs, setting.labels), setting.device, setting.known
    )
    memory = [peak_bytes(one.run, setting.device, setting.known) / activations for one in contenders]
    ratios: list[list[float]] = [[] for _ in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for first in range(rounds):
        before = clocked(step, setting.device)
        for turn in range(len(contenders)):
            k = (first + turn) % len(contenders)
            took = clocked(contenders[k].run, setting.device)
            after = clocked(step, setting.device)
            a_sample = (before + after) / 2 / setting.shape.batch
            seconds[k].append(took / contenders[k].samples)
            ratios[k].append(seconds[k][-1] / a_sample)
            before = after
    return [Figures(*parts) for parts in zip(contenders, ratios, seconds, memory, strict=True)]


def clocked(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bars_of(name: str, setting: Setting) -> dict[str, float]:
    """What must hold: the speed-up at least, everything else at most."""
    if setting.shape.name == "digitmath":
        return {}
    engine = "how=engine" in name or ("second_order" in name and "norms=off" not in name)
    bars = {"peak_memory_ratio": 1.15} if engine else {}
    if name.endswith("second_order K=16"):
        blocks = 1.2 if setting.shape.name == "1b" else 1.35
        bars |= {"ratio_to_train_step": 0.9 if setting.scope == "lora" else blocks, "speedup_over_exact": 20.0}
    if name.endswith("central_difference"):
        bars |= {"ratio_to_train_step": 0.75}
    return bars


def record(recorder: Recorder, setting: Setting, figures: list[Figures]) -> list[str]:
    """Writes all figures; the table's lines, each figure with its bar."""
    shape, exactly = setting.shape, figures[0]
    target_dtype = next(iter(setting.targets.values())).dtype
    suffix = "" if target_dtype == shape.dtype else f" targets={short(target_dtype)}"
    lines = [f"| {' | '.join(('contender', *METRICS))} |", "| --- | --- | --- | --- | --- |"]
    for one in figures:
        name = one.contender.name
        case = f"{name} scope={setting.scope} device={setting.device} shape={shape.name} T={shape.tokens} "
        case += f"batch={shape.batch}{suffix}"
        spreads = {
            "ratio_to_train_step": Spread.of(one.ratios),
            "samples_per_s": Spread.of([1 / s for s in one.seconds]),
            "speedup_over_exact": Spread.of([a / b for a, b in zip(exactly.ratios, one.ratios, strict=True)]),
        }
        for metric, spread in spreads.items():
            spread.record(recorder, case, metric, METRICS[metric])
        recorder.add(case=case, metric="peak_memory_ratio", value=one.memory, unit="ratio", n=1)
        values = {metric: spread.value for metric, spread in spreads.items()} | {"peak_memory_ratio": one.memory}
        bars = bars_of(name, setting)
        cells = [f"{values[metric]:.3g}{beside(metric, values[metric], bars.get(metric))}" for metric in METRICS]
        lines.append(f"| {' | '.join((name, *cells))} |")
    return lines


METRICS = {
    "ratio_to_train_step": "ratio",
    "samples_per_s": "1/s",
    "peak_memory_ratio": "ratio",
    "speedup_over_exact": "ratio",
}


def beside(metric: str, value: float, bar: float | None) -> str:
    if bar is None:
        return ""
    at_least = metric == "speedup_over_exact"
    holds = value >= bar if at_least else value <= bar
    return f" (bar {'>=' if at_least else '<='} {bar:g}: {'holds' if holds else 'MISSED'})"


def short(dtype: torch.dtype) -> str:
    return next(name for name, one in DTYPES.items() if one == dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--shape", choices=SHAPES, default="256x4")
    parser.add_argument("--scope", choices=("blocks", "lora"), default="blocks")
    parser.add_argument("--target-dtype", choices=DTYPES, help="default: the weights'")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="on the CPU; 1 where other work takes the cores")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    shape = SHAPES[chosen.shape]
    recorder = Recorder("bench_scoring", chosen.out, chosen.device)
    dtype = DTYPES[chosen.target_dtype] if chosen.target_dtype else shape.dtype
    setting = Setting.of(shape, chosen.scope, chosen.device, dtype, max(PROBES))
    held = sum(target[0].nbytes for target in setting.targets.values())
    sizes = ", ".join(f"K={k} {(1 + k) * held / 2**20:.0f} MiB" for k in PROBES)
    print(f"{held // dtype.itemsize:,} parameters in scope; targets in {short(dtype)}: {sizes}", flush=True)
    print(
        "\n".join(record(recorder, setting, measure(setting, usable(setting, contenders_of(setting)), chosen.rounds)))
    )


if __name__ == "__main__":
    main()
