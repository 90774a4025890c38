"""How fast `one_step_head` is, against the best formulation in plain PyTorch, and what memory it takes.

    python benchmarks/bench_one_step_head.py --device cpu --out /tmp/bench_one_step_head.jsonl
    python benchmarks/bench_one_step_head.py --device cuda --out /tmp/bench_one_step_head.jsonl

On CUDA: V=32,000, 64 answer tokens, 100 anchors of 64 tokens, width 896, bf16. Plain PyTorch is given its best case:
what a candidate needs of the anchors' logits is kept in memory for all of them, and a candidate costs one product of
[anchor tokens, T] with [T, V] and one pass over the result. Kept are bf16 logits, fp32 logits, or probabilities, each
also under `torch.compile`. On the CPU, smaller, against taking the step and the loss again. On both, against computing
every new logit, as large steps need it, and on CUDA against the first order, which is one product in plain PyTorch.

What is timed is compared with float64 first. A formulation in plain PyTorch that is off by more than the kernel may be
is timed too, and is not what the kernel's speed is held to: a difference of two losses in bf16 is mostly rounding.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from _kernels import Ceilings, Spread, draw_roofline, interleaved, measure_ceilings, rates, ratios, refuse_unless
from _memory import peak_bytes
from _record import Recorder
from torch import Tensor

from ostlight_kernels import explain_dispatch, one_step_head, small_steps

ETA = 0.05


def inputs(n: int, t: int, anchors: int, s: int, d: int, v: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return {
        "h": normal(n, t, d).to(dtype),
        "labels": torch.randint(0, v, (n, t), generator=generator, device=device),
        "anchor_h": normal(anchors, s, d).to(dtype),
        "anchor_labels": torch.randint(0, v, (anchors, s), generator=generator, device=device),
        "weight": (normal(v, d) * 2 / d**0.5).to(dtype),
        "bias": None,
        "eta": ETA,
    }


def anchor_loss(weight: Tensor, case: dict[str, Any]) -> Tensor:
    return F.cross_entropy(F.linear(case["anchor_h"].flatten(0, 1), weight), case["anchor_labels"].flatten())


def step_and_measure(case: dict[str, Any]) -> Tensor:
    """The definition: one candidate at a time, a gradient, a new weight, the anchor loss again."""
    weight = case["weight"]
    before = anchor_loss(weight, case)
    utilities = []
    for h, labels in zip(case["h"], case["labels"], strict=True):
        errors = torch.softmax(F.linear(h, weight), -1)
        errors[torch.arange(len(labels), device=h.device), labels] -= 1.0
        utilities.append(before - anchor_loss(weight - case["eta"] / len(labels) * errors.T @ h, case))
    return torch.stack(utilities)


def change_by_logits(logits: Tensor, losses: Tensor, steps: Tensor, errors: Tensor, y: Tensor) -> Tensor:
    """One candidate: by how much its step changes the anchors' losses. ``logits [S, V]`` are kept, new ones pass by."""
    same = logits.dtype == steps.dtype
    moved = torch.addmm(logits, steps, errors, alpha=-1) if same else logits - steps @ errors
    return torch.logsumexp(moved.float(), -1) - moved.gather(1, y[:, None])[:, 0].float() - losses


def change_by_probabilities(p: Tensor, losses: Tensor, steps: Tensor, errors: Tensor, y: Tensor) -> Tensor:
    """The same from ``p [S, V]``, without a difference of two losses."""
    moved = (steps @ errors).float()
    label = moved.gather(1, y[:, None])
    return torch.log1p((p.float() * torch.expm1(label - moved)).sum(-1))


KEPT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "bf16_logits": (lambda logits: logits, change_by_logits),
    "fp32_logits": (lambda logits: logits.float(), change_by_logits),
    "probabilities": (lambda logits: torch.softmax(logits.float(), -1).to(logits.dtype), change_by_probabilities),
}
"""What is made of the anchors' logits and kept, and what a candidate does with it."""


class Kept:
    """The closed form in plain PyTorch, with every shortcut that memory buys."""

    def __init__(self, case: dict[str, Any], name: str, compiled: bool = False) -> None:
        self.case = case
        self.keep, change = KEPT[name]
        self.change = torch.compile(change, dynamic=False) if compiled else change

    def __call__(self) -> Tensor:
        case = self.case
        anchor_x, y = case["anchor_h"].flatten(0, 1), case["anchor_labels"].flatten()
        logits = F.linear(anchor_x, case["weight"])
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        kept = self.keep(logits)
        utilities = []
        for h, labels in zip(case["h"], case["labels"], strict=True):
            errors = torch.softmax(F.linear(h, case["weight"]).float(), -1)
            errors[torch.arange(len(labels), device=h.device), labels] -= 1.0
            steps = (anchor_x @ h.T).float() * (case["eta"] / len(labels))
            utilities.append(-self.change(kept, losses, steps.to(h.dtype), errors.to(h.dtype), y).mean())
        return torch.stack(utilities)


def by_full_vocabulary(case: dict[str, Any]) -> Tensor:
    with patch.object(small_steps, "LARGEST_CHANGE", 0.0):
        return one_step_head(**case)


def first_order(case: dict[str, Any]) -> Tensor:
    """All candidates at once, what is left of the closed form where steps go to zero: not exact, one large product."""
    anchor_x, y = case["anchor_h"].flatten(0, 1), case["anchor_labels"].flatten()
    n, t = case["labels"].shape
    anchor_errors = torch.softmax(F.linear(anchor_x, case["weight"]).float(), -1)
    anchor_errors[torch.arange(len(y), device=y.device), y] -= 1.0
    x = case["h"].flatten(0, 1)
    errors = torch.softmax(F.linear(x, case["weight"]).float(), -1)
    errors[torch.arange(n * t, device=y.device), case["labels"].flatten()] -= 1.0
    dots = (anchor_errors.to(x.dtype) @ errors.to(x.dtype).T).float() * (anchor_x @ x.T).float()
    return dots.mean(0).view(n, t).sum(1) * (case["eta"] / t)


CHECKED = 2
"""Candidates whose utilities are compared with float64."""


def few_of(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The first candidates, in another dtype."""
    few = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in case.items()}
    return few | {"h": few["h"][:CHECKED], "labels": few["labels"][:CHECKED]}


def expected_of(case: dict[str, Any]) -> Tensor:
    return one_step_head(**few_of(case, torch.float64))


def error_of(got: Tensor, expected: Tensor) -> float:
    """The largest, in the largest utility."""
    return float(((got[:CHECKED] - expected).abs() / expected.abs().max()).max())


def check_error(name: str, error: float, tolerance: float) -> None:
    refuse_unless(error <= tolerance, f"{name} is off by {error:.3g} of the largest utility")


def on_cpu(recorder: Recorder, rounds: int) -> None:
    n, t, anchors, s, d, v = 8, 16, 20, 16, 128, 4000
    case = inputs(n, t, anchors, s, d, v, "cpu", torch.float32)
    expected = expected_of(case)
    check_error("one_step_head", error_of(one_step_head(**case), expected), 1e-4)
    check_error("step_and_measure", error_of(step_and_measure(few_of(case, torch.float64)), expected), 1e-6)
    check_error("by_full_vocabulary", error_of(by_full_vocabulary(case), expected), 1e-4)
    others = {"step_and_measure": lambda: step_and_measure(case), "full_vocabulary": lambda: by_full_vocabulary(case)}
    seconds = interleaved({"one_step_head": lambda: one_step_head(**case)} | others, "cpu", rounds, warm_up=1)
    label = f"kernel=one_step_head V={v} T={t} anchors={anchors}x{s} D={d} N={n} dtype=fp32"
    for name in others:
        ratios(seconds[name], seconds["one_step_head"]).record(recorder, label, f"speedup_over_{name}", "ratio")
    Spread.of([x / n for x in seconds["one_step_head"]]).record(recorder, label, "time_per_candidate", "s")


TOLERANCE = 3e-2
"""In bf16, of the largest utility."""


def on_cuda(recorder: Recorder, rounds: int, n: int, plot: Path | None) -> None:
    t, anchors, s, d, v = 64, 100, 64, 896, 32_000
    ceilings = measure_ceilings(recorder)
    case = inputs(n, t, anchors, s, d, v, "cuda", torch.bfloat16)
    print(explain_dispatch(case["h"]))
    expected = expected_of(case)
    check_error("one_step_head", error_of(one_step_head(**case), expected), TOLERANCE)
    label = f"kernel=one_step_head V={v} T={t} anchors={anchors}x{s} D={d} N={n} dtype=bf16"
    plain = {name: Kept(case, name) for name in KEPT} | {f"compiled_{name}": Kept(case, name, True) for name in KEPT}
    accurate = accurate_formulations(recorder, label, plain, expected)
    check_error("by_full_vocabulary", error_of(by_full_vocabulary(case), expected), TOLERANCE)
    others = {"full_vocabulary": lambda: by_full_vocabulary(case), "first_order": lambda: first_order(case)}
    seconds = interleaved({"one_step_head": lambda: one_step_head(**case)} | plain | others, "cuda", rounds)
    ours = seconds["one_step_head"]
    best = [min(times) for times in zip(*(seconds[name] for name in accurate), strict=True)]
    ratios(best, ours).record(recorder, label, "speedup_over_best_pytorch", "ratio")
    for name in plain | others:
        ratios(seconds[name], ours).record(recorder, label, f"speedup_over_{name}", "ratio")
    Spread.of([x / n for x in ours]).record(recorder, label, "time_per_candidate", "s")

    tokens = anchors * s
    flops = 2.0 * v * (tokens * t * n + tokens * d + n * t * d)
    moved = 2.0 * (n * t * d + tokens * d + v * d)
    rates(flops, ours).record(recorder, label, "needed_flops", "FLOP/s")
    rates(flops / ceilings.flops_per_s, ours).record(recorder, label, "share_of_matmul_ceiling", "ratio")
    rates(moved, ours).record(recorder, label, "compulsory_bandwidth", "byte/s")
    rates(moved / ceilings.bytes_per_s, ours).record(recorder, label, "share_of_copy_ceiling", "ratio")
    sizes = {"n": n, "anchors": anchors, "v": v}
    for changed in ({}, *({name: size * k // 4} for name, size in sizes.items() for k in (1, 16))):
        record_memory(recorder, t=t, s=s, d=d, **sizes | changed)
    if plot:
        draw(plot, ceilings, flops, moved, rates(flops, ours).value)


def draw(plot: Path, ceilings: Ceilings, flops: float, moved: float, achieved: float) -> None:
    draw_roofline(plot, "one_step_head, bf16", ceilings, {"one_step_head": (flops / moved, achieved)})


def accurate_formulations(recorder: Recorder, label: str, plain: dict[str, Kept], expected: Tensor) -> list[str]:
    """The names of those that come as close to float64 as the kernel has to; every one's error is recorded.

    Raises:
        Refused: none does.
    """
    accurate = []
    for name, formulation in plain.items():
        few = copy.copy(formulation)
        few.case = few_of(formulation.case, formulation.case["h"].dtype)
        error = error_of(few(), expected)
        recorder.add(case=label, metric=f"error_of_{name}", value=error, unit="ratio", n=1)
        accurate += [name] if error <= TOLERANCE else []
    refuse_unless(bool(accurate), "no formulation in plain PyTorch is accurate")
    return accurate


def record_memory(recorder: Recorder, *, n: int, t: int, anchors: int, s: int, d: int, v: int) -> None:
    """Peak beside the inputs; it may not follow V x anchors x candidates."""
    case = inputs(n, t, anchors, s, d, v, "cuda", torch.bfloat16)
    one_step_head(**case)
    peak = float(peak_bytes(lambda: one_step_head(**case), "cuda", []))
    label = f"kernel=one_step_head V={v} N={n} anchors={anchors}x{s}"
    recorder.add(case=label, metric="peak_memory", value=peak, unit="byte", n=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, help="JSONL file to append to; the roofline is drawn beside it")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=128, help="candidates per call on CUDA")
    options = parser.parse_args()
    torch.set_num_threads(2)
    recorder = Recorder("bench_one_step_head", options.out, options.device)
    with torch.no_grad():
        if options.device == "cpu":
            on_cpu(recorder, options.rounds)
        else:
            plot = options.out.with_suffix(".roofline.png") if options.out else None
            on_cuda(recorder, options.rounds, options.candidates, plot)


if __name__ == "__main__":
    main()
