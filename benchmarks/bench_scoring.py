"""What it costs to score a sample, in plain training steps on that sample, and what memory it takes.

    python benchmarks/bench_scoring.py --device cpu --out /tmp/bench_scoring.jsonl [--shape digitmath]
    python benchmarks/bench_scoring.py --device cpu --out /tmp/bench_scoring.jsonl --parameters lora
    python benchmarks/bench_scoring.py --device cuda --out /tmp/bench_scoring.jsonl --shape 1b

A training step is forward, full backward and AdamW of all parameters, on the same batch. Every round of an
implementation is between two training steps, and its ratio is to the mean of these; a figure is the median of the
ratios. Memory is what a pass holds beyond model and targets, over what the forward pass of a training step leaves for
its backward pass.

Implementations are timed one after the other, and each is recorded as soon as it is done. One that fails, or whose
inner products differ from those of plain autograd, is left out, and the exit status is 1 unless it may fail. A K whose
targets take more than half of the GPU's free memory is left out too, and recorded as such.

Weights, tokens and probes are random: none of them changes what is computed. `exact` is timed on one sample a round.
Passes of the gradient engine compute gradient norms too, as the `ost` selector does; `norms=off` shows their cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _kernels import Refused, Spread, refuse_unless
from _memory import peak_bytes
from _record import Recorder
from _scoring_implementations import (
    DIRECTIONS,
    PROBES,
    Implementation,
    ScoringContext,
    implementations,
    losses_of,
    training_step,
)
from _scoring_shapes import SHAPES
from torch import Tensor

EXACT = "estimator=exact"

COUNTS = tuple(sorted({*PROBES, DIRECTIONS}))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Check:
    """That an implementation's inner products agree with plain autograd on one sample.

    An error is measured against the product itself and against what a random target of its length would give; over
    the product of the norms, which is larger by the root of the number of parameters, hardly any error would show.
    """

    def __init__(self, context: ScoringContext) -> None:
        self.expected, self.typical = on_one_sample(context)
        target_dtype = next(iter(context.targets.values())).dtype
        self.rounding = 5e-2 if torch.bfloat16 in (context.shape.dtype, target_dtype) else 1e-3

    def __call__(self, implementation: Implementation) -> None:
        """Raises:
        Refused: it does not agree.
        """
        found = implementation.run()[0].double()
        if implementation.name == EXACT:
            refuse_unless(bool(found.isfinite().all()), f"{implementation.name} is {found}")
            return
        these = slice(0, len(found))
        scale = self.expected[these].abs() + self.typical[these]
        error = float(((found - self.expected[these]).abs() / scale).max())
        allowed = 5e-2 if implementation.name.startswith("estimator=finite_difference") else self.rounding
        refuse_unless(error <= allowed, f"{implementation.name} is {error:.3g} off plain autograd, {allowed:g} allowed")


def on_one_sample(context: ScoringContext) -> tuple[Tensor, Tensor]:
    """``[M]`` the first sample's inner products in fp64, and the size of those with random targets as long as these."""
    parameters = list(context.parameters.values())
    gradient = dict(zip(context.parameters, torch.autograd.grad(context.losses()[0], parameters), strict=True))
    sums = torch.zeros(1 + context.num_probes, 2, dtype=torch.float64, device=context.device)
    for name, g in gradient.items():
        for into, target in zip(sums, context.targets[name], strict=True):
            into += torch.stack([(target.double() * g.double()).sum(), target.double().square().sum()])
    squared = sum(float(g.double().square().sum()) for g in gradient.values())
    count = sum(g.numel() for g in gradient.values())
    return sums[:, 0], (sums[:, 1] * squared / count).sqrt()


@dataclass(frozen=True)
class Figures:
    """Of one implementation, a value a round; ``memory`` is over the activations of a training step."""

    implementation: Implementation
    ratios: list[float]
    seconds: list[float]
    memory: float


class Clock:
    """Times implementations between training steps, which are warm and whose activations are known."""

    def __init__(self, context: ScoringContext) -> None:
        self.context, self.step = context, training_step(context)
        self.step()
        trained = (context.trained, context.inputs, context.labels)
        self.activations = peak_bytes(lambda: losses_of(*trained), context.device, context.known)

    def figures(self, implementation: Implementation, rounds: int) -> Figures:
        context = self.context
        memory = peak_bytes(implementation.run, context.device, context.known) / self.activations
        ratios, seconds = [], []
        before = clocked(self.step, context.device)
        for _ in range(rounds):
            seconds.append(clocked(implementation.run, context.device) / implementation.samples)
            after = clocked(self.step, context.device)
            ratios.append(seconds[-1] / ((before + after) / 2 / context.shape.batch))
            before = after
        return Figures(implementation, ratios, seconds, memory)


def time_all(
    recorder: Recorder, context: ScoringContext, implementations: list[Implementation], rounds: int
) -> tuple[list[str], bool]:
    """Checks, times and records one implementation after the other.

    Returns:
        The table's lines, each figure with its bar; whether all succeeded that may not fail.
    """
    check, clock = Check(context), Clock(context)
    lines, succeeded, exact = list(TABLE), True, None
    for implementation in implementations:
        try:
            check(implementation)
            figures = clock.figures(implementation, rounds)
        except (Exception, Refused) as failure:
            print(
                f"left out: {implementation.name}: {type(failure).__name__}: {str(failure).strip()[:160]}", flush=True
            )
            succeeded = succeeded and implementation.may_fail and not isinstance(failure, Refused)
            continue
        exact = figures if implementation.name == EXACT else exact
        lines.append(record(recorder, context, figures, exact))
    return lines, succeeded


def clocked(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bars_of(name: str, context: ScoringContext) -> dict[str, float]:
    """What must hold: the speed-up at least, everything else at most."""
    if context.shape.name == "digitmath":
        return {}
    by_engine = any(e in name for e in ("first_order", "second_order", "projected")) and "norms=off" not in name
    bars = {"peak_memory_ratio": 1.15} if by_engine else {}
    if name.endswith("second_order K=16"):
        blocks = 1.2 if context.shape.name == "1b" else 1.35
        bars |= {"ratio_to_train_step": 0.9 if context.parameter_set == "lora" else blocks, "speedup_over_exact": 20.0}
    if name.startswith("estimator=finite_difference"):
        bars |= {"ratio_to_train_step": 0.75}
    return bars


def record(recorder: Recorder, context: ScoringContext, figures: Figures, exact: Figures | None) -> str:
    """Writes an implementation's figures, over those of ``exact`` where it was not left out; its line of the table."""
    shape, name = context.shape, figures.implementation.name
    target_dtype = next(iter(context.targets.values())).dtype
    suffix = "" if target_dtype == shape.dtype else f" targets={short(target_dtype)}"
    case = f"{name} parameters={context.parameter_set} device={context.device} shape={shape.name} T={shape.tokens} "
    case += f"batch={shape.batch}{suffix}"
    spreads = {
        "ratio_to_train_step": Spread.of(figures.ratios),
        "samples_per_s": Spread.of([1 / s for s in figures.seconds]),
    }
    if exact:
        over_exact = [a / b for a, b in zip(exact.ratios, figures.ratios, strict=True)]
        spreads["speedup_over_exact"] = Spread.of(over_exact)
    for metric, spread in spreads.items():
        spread.record(recorder, case, metric, METRICS[metric])
    recorder.add(case=case, metric="peak_memory_ratio", value=figures.memory, unit="ratio", n=1)
    values = {metric: spread.value for metric, spread in spreads.items()} | {"peak_memory_ratio": figures.memory}
    bars = bars_of(name, context)
    columns = [
        f"{values[metric]:.3g}{beside(metric, values[metric], bars.get(metric))}" if metric in values else "-"
        for metric in METRICS
    ]
    return f"| {' | '.join((name, *columns))} |"


def record_left_out(recorder: Recorder, context: ScoringContext, counts: tuple[int, ...]) -> None:
    """Says which K are not timed since their targets take too much memory, and how much that would be."""
    where = f"parameters={context.parameter_set} device={context.device} shape={context.shape.name}"
    for k in counts:
        if k > context.num_probes:
            needed = float((1 + k) * context.target_bytes)
            print(f"left out: K={k}: {needed / 2**30:.1f} GiB of targets are over half of the free memory", flush=True)
            recorder.add(case=f"K={k} {where}", metric="left_out_targets", value=needed, unit="byte", n=1)


METRICS = {
    "ratio_to_train_step": "ratio",
    "samples_per_s": "1/s",
    "peak_memory_ratio": "ratio",
    "speedup_over_exact": "ratio",
}
TABLE = (f"| {' | '.join(('implementation', *METRICS))} |", "| --- | --- | --- | --- | --- |")


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
    parser.add_argument("--parameters", choices=("blocks", "lora"), default="blocks")
    parser.add_argument("--target-dtype", choices=DTYPES, help="default: the weights'")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each implementation")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU; 1 where other work takes the cores")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    recorder = Recorder("bench_scoring", options.out, options.device)
    dtype = DTYPES[options.target_dtype] if options.target_dtype else shape.dtype
    context = ScoringContext.of(shape, options.parameters, options.device, dtype, COUNTS)
    held = context.target_bytes
    sizes = ", ".join(f"K={k} {(1 + k) * held / 2**20:.0f} MiB" for k in COUNTS)
    print(f"{held // dtype.itemsize:,} selected parameters; targets in {short(dtype)}: {sizes}", flush=True)
    record_left_out(recorder, context, COUNTS)
    lines, succeeded = time_all(recorder, context, implementations(context), options.rounds)
    print("\n".join(lines))
    raise SystemExit(not succeeded)


if __name__ == "__main__":
    main()
