"""Which precision the passes run in, where the configuration leaves it open."""

from __future__ import annotations

from dataclasses import replace

import torch

from ostlight.config.schema import Compute, Config


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
