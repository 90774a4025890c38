"""Which precision the passes run in, where the configuration leaves it open."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import cache

import torch

from ostlight.config.schema import Compute, Config

log = logging.getLogger(__name__)

SLOW = 2.0
"""Times longer than in fp32 from which bf16 on a CPU is warned of."""
SIDE = 256
"""Of the matrices it is measured with."""
TRIALS = 4


def on_cuda(compute: Compute) -> bool:
    """Whether ``compute.accelerator`` takes a CUDA device of this machine."""
    return torch.cuda.is_available() and compute.accelerator in ("auto", "gpu", "cuda")


def precision_of(compute: Compute) -> str:
    """Lightning's precision: that of the settings, or what ``auto`` stands for on this machine.

    ``auto`` is ``bf16-mixed`` (weights and optimizer in fp32, forward and backward passes in bf16) on a CUDA device
    that computes in bf16 itself, and ``32-true`` on any other.
    """
    if compute.precision != "auto":
        return compute.precision
    return "bf16-mixed" if on_cuda(compute) and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def target_compute(config: Config) -> Compute:
    """``compute``, in the precision of the target's training."""
    return replace(config.compute, precision=config.target.precision or config.compute.precision)


def precision_line(compute: Compute) -> str | None:
    """One line for the log on what ``auto`` chose; ``None`` where nothing was chosen, or there is no CUDA device."""
    if compute.precision != "auto" or not on_cuda(compute):
        return None
    device = torch.cuda.get_device_name()
    if precision_of(compute) == "32-true":
        return f"precision: 32-true (compute.precision=auto; {device} does not compute in bf16)"
    return (
        f"precision: bf16-mixed (compute.precision=auto on {device}): passes in bf16 with sums in fp32; weights, "
        "optimizer and exact utilities in fp32; compute.precision=32-true takes all in fp32, several times slower"
    )


def sum_in_fp32() -> None:
    """Matrix products in bf16 keep fp32 sums also where cuBLAS splits them; PyTorch rounds those in between."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def warn_of_slow_bf16(compute: Compute) -> None:
    """Warns once where the passes run in bf16 on a CPU that has no instructions for it."""
    on_cpu = compute.accelerator == "cpu" or (compute.accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and precision_of(compute).startswith("bf16"):
        _warn_of_slow_bf16(compute.precision)


@cache
def _warn_of_slow_bf16(precision: str) -> None:
    slowdown = bf16_slowdown()
    if slowdown > SLOW:
        log.warning(
            f"precision {precision}: a linear layer takes {slowdown:.0f} times as long in bf16 as in fp32 on this CPU; "
            "compute.precision=32-true (target.precision for the target's training) is faster and more precise here"
        )


def bf16_slowdown() -> float:
    """Returns how many times longer a linear layer takes on one core of this CPU in bf16 than in fp32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others that work here delay several far more than one
    try:
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.ones(SIDE, SIDE, dtype=dtype)
            seconds[dtype] = min(_seconds_of_linear(matrix) for _ in range(TRIALS))
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _seconds_of_linear(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.nn.functional.linear(matrix, matrix)
    return time.perf_counter() - began
