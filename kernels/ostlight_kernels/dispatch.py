"""The one place that decides between the Triton kernels and the PyTorch reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ostlight_kernels._triton import HAVE_TRITON

SWITCH = "OSTLIGHT_KERNELS"
"""Environment variable: ``reference`` takes the PyTorch path everywhere."""

OLDEST_CAPABILITY = 80


@dataclass(frozen=True, slots=True)
class KernelPath:
    """Which implementation is taken, and why."""

    name: Literal["triton", "reference"]
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def capability(tensor: Tensor) -> int:
    """80 for sm_80 and so on; 80 for a tensor that is on no GPU, which only the interpreter asks."""
    if not tensor.is_cuda:
        return OLDEST_CAPABILITY
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def explain_dispatch(tensor: Tensor) -> KernelPath:
    """The path a kernel takes for inputs of this tensor's device and dtype.

    >>> str(explain_dispatch(torch.zeros(1)))
    'reference: the tensors are on cpu'

    Raises:
        ValueError: ``OSTLIGHT_KERNELS`` is neither ``reference`` nor empty.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "reference"):
        raise ValueError(f"{SWITCH}: got {switch!r}, takes 'reference' or nothing")
    if switch == "reference":
        return KernelPath("reference", f"{SWITCH}=reference")
    if not HAVE_TRITON:
        return KernelPath("reference", "triton is not installed")
    if tensor.dtype == torch.float64:
        return KernelPath("reference", "the kernels accumulate in fp32 and the input is float64")
    if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on"):
        if tensor.dtype == torch.bfloat16:
            return KernelPath("reference", "Triton's interpreter multiplies the bits of bf16 numbers, not their values")
        return KernelPath("triton", "TRITON_INTERPRET=1 runs the kernels on the CPU")
    if tensor.device.type != "cuda":
        return KernelPath("reference", f"the tensors are on {tensor.device.type}")
    if torch.version.hip:
        return KernelPath("reference", "the kernels are tuned and tested for NVIDIA only")
    if capability(tensor) < OLDEST_CAPABILITY:
        return KernelPath("reference", f"compute capability sm_{capability(tensor)} is below sm_{OLDEST_CAPABILITY}")
    return KernelPath("triton", f"{torch.cuda.get_device_name(tensor.device)}, {tensor.dtype}")
