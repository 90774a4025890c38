"""What it costs to score a sample, in plain training steps on that sample, and what memory it takes.

    python benchmarks/bench_scoring.py --device cpu --out benchmarks/results/bench_scoring.jsonl [--shape digitmath]
    python benchmarks/bench_scoring.py --device cpu --out benchmarks/results/bench_scoring.jsonl --scope lora
    python benchmarks/bench_scoring.py --device cuda --out benchmarks/results/bench_scoring.jsonl --shape 1b

A training step is forward, full backward and AdamW of all parameters, on the same batch. A contender's every turn is
between two training steps, and its ratio is to the mean of these; a figure is the median of the ratios. Memory is what
a pass holds beyond model and targets, over what the forward pass of a training step leaves for its backward pass.

One contender comes after the other and is recorded as soon as it is done. One that fails, or whose inner products are
not those of plain autograd, is left out; the exit status is 1 at the end, but for a failure of what may fail. A K whose
targets exceed half of the GPU's free memory is left out as well, and the record says so.

Weights, tokens and probes are random: none of them changes what is computed. `exact` is timed on one sample a round.
Engine passes take gradient norms along, as the `ost` selector does; `norms=off` says what they cost.
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
from _scoring_contenders import DIRECTIONS, PROBES, Contender, ScoringContext, contenders_of, losses_of, training_step
from _scoring_shapes import SHAPES
from torch import Tensor

EXACT = "estimator=exact"

COUNTS = tuple(sorted({*PROBES, DIRECTIONS}))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Check:
    """That a contender's inner products agree with plain autograd on one sample.

    An error is measured against the product itself and against what a random target of its length would give; over
    the product of the norms, which is larger by the root of the number of parameters, hardly any error would show.
    """

    def __init__(self, context: ScoringContext) -> None:
        self.expected, self.typical = on_one_sample(context)
        target_dtype = next(iter(context.targets.values())).dtype
        self.rounding = 5e-2 if torch.bfloat16 in (context.shape.dtype, target_dtype) else 1e-3

    def __call__(self, contender: Contender) -> None:
        """Raises:
        Refused: it does not agree.
        """
        found = contender.run()[0].double()
        if contender.name == EXACT:
            refuse_unless(bool(found.isfinite().all()), f"{contender.name} is {found}")
            return
        these = slice(0, len(found))
        scale = self.expected[these].abs() + self.typical[these]
        error = float(((found - self.expected[these]).abs() / scale).max())
        allowed = 5e-2 if contender.name.endswith("central_difference") else self.rounding
        refuse_unless(error <= allowed, f"{contender.name} is {error:.3g} off plain autograd, {allowed:g} allowed")


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
    """Of one contender, a value a turn; ``memory`` is over the activations of a training step."""

    contender: Contender
    ratios: list[float]
    seconds: list[float]
    memory: float


class Clock:
    """Times contenders between training steps, which are warm and whose activations are known."""

    def __init__(self, context: ScoringContext) -> None:
        self.context, self.step = context, training_step(context)
        self.step()
        trained = (context.trained, context.inputs, context.labels)
        self.activations = peak_bytes(lambda: losses_of(*trained), context.device, context.known)

    def figures(self, contender: Contender, turns: int) -> Figures:
        context = self.context
        memory = peak_bytes(contender.run, context.device, context.known) / self.activations
        ratios, seconds = [], []
        before = clocked(self.step, context.device)
        for _ in range(turns):
            seconds.append(clocked(contender.run, context.device) / contender.samples)
            after = clocked(self.step, context.device)
            ratios.append(seconds[-1] / ((before + after) / 2 / context.shape.batch))
            before = after
        return Figures(contender, ratios, seconds, memory)


def time_all(
    recorder: Recorder, context: ScoringContext, contenders: list[Contender], turns: int
) -> tuple[list[str], bool]:
    """Checks, times and records one contender after the other.

    Returns:
        The table's lines, each figure with its bar; whether all went well but for what may fail.
    """
    check, clock = Check(context), Clock(context)
    lines, well, exactly = list(TABLE), True, None
    for contender in contenders:
        try:
            check(contender)
            figures = clock.figures(contender, turns)
        except (Exception, Refused) as failure:
            print(f"left out: {contender.name}: {type(failure).__name__}: {str(failure).strip()[:160]}", flush=True)
            well = well and contender.may_fail and not isinstance(failure, Refused)
            continue
        exactly = figures if contender.name == EXACT else exactly
        lines.append(record(recorder, context, figures, exactly))
    return lines, well


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
    engine = "how=engine" in name or (("second_order" in name or "projected" in name) and "norms=off" not in name)
    bars = {"peak_memory_ratio": 1.15} if engine else {}
    if name.endswith("second_order K=16"):
        blocks = 1.2 if context.shape.name == "1b" else 1.35
        bars |= {"ratio_to_train_step": 0.9 if context.scope == "lora" else blocks, "speedup_over_exact": 20.0}
    if name.endswith("central_difference"):
        bars |= {"ratio_to_train_step": 0.75}
    return bars


def record(recorder: Recorder, context: ScoringContext, figures: Figures, exactly: Figures | None) -> str:
    """Writes a contender's figures, over those of ``exact`` where it was not left out; its line of the table."""
    shape, name = context.shape, figures.contender.name
    target_dtype = next(iter(context.targets.values())).dtype
    suffix = "" if target_dtype == shape.dtype else f" targets={short(target_dtype)}"
    case = f"{name} scope={context.scope} device={context.device} shape={shape.name} T={shape.tokens} "
    case += f"batch={shape.batch}{suffix}"
    spreads = {
        "ratio_to_train_step": Spread.of(figures.ratios),
        "samples_per_s": Spread.of([1 / s for s in figures.seconds]),
    }
    if exactly:
        over_exact = [a / b for a, b in zip(exactly.ratios, figures.ratios, strict=True)]
        spreads["speedup_over_exact"] = Spread.of(over_exact)
    for metric, spread in spreads.items():
        spread.record(recorder, case, metric, METRICS[metric])
    recorder.add(case=case, metric="peak_memory_ratio", value=figures.memory, unit="ratio", n=1)
    values = {metric: spread.value for metric, spread in spreads.items()} | {"peak_memory_ratio": figures.memory}
    bars = bars_of(name, context)
    cells = [
        f"{values[metric]:.3g}{beside(metric, values[metric], bars.get(metric))}" if metric in values else "-"
        for metric in METRICS
    ]
    return f"| {' | '.join((name, *cells))} |"


def record_left_out(recorder: Recorder, context: ScoringContext, counts: tuple[int, ...]) -> None:
    """Says which K are not timed since their targets take too much memory, and how much that would be."""
    where = f"scope={context.scope} device={context.device} shape={context.shape.name}"
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
TABLE = (f"| {' | '.join(('contender', *METRICS))} |", "| --- | --- | --- | --- | --- |")


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
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU; 1 where other work takes the cores")
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        torch.set_num_threads(chosen.threads)
    shape = SHAPES[chosen.shape]
    recorder = Recorder("bench_scoring", chosen.out, chosen.device)
    dtype = DTYPES[chosen.target_dtype] if chosen.target_dtype else shape.dtype
    context = ScoringContext.of(shape, chosen.scope, chosen.device, dtype, COUNTS)
    held = context.target_bytes
    sizes = ", ".join(f"K={k} {(1 + k) * held / 2**20:.0f} MiB" for k in COUNTS)
    print(f"{held // dtype.itemsize:,} parameters in scope; targets in {short(dtype)}: {sizes}", flush=True)
    record_left_out(recorder, context, COUNTS)
    lines, well = time_all(recorder, context, contenders_of(context), chosen.rounds)
    print("\n".join(lines))
    raise SystemExit(not well)


if __name__ == "__main__":
    main()
