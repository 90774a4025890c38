"""The one place that decides between the Triton kernels and the PyTorch reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

SWITCH = "OSTLIGHT_KERNELS"
"""Environment variable: ``reference`` takes the PyTorch path everywhere."""

OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Path:
    """Which implementation is taken, and why."""

    name: Literal["triton", "reference"]
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@cache
def _triton_found() -> bool:
    return find_spec("triton") is not None


def _interpreting() -> bool:
    if not _triton_found():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def explain(tensor: Tensor) -> Path:
    """The path a kernel takes for inputs of this tensor's device and dtype.

    >>> str(explain(torch.zeros(1)))
    'reference: the tensors are on cpu'
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "reference"):
        raise ValueError(f"{SWITCH}: got {switch!r}, takes 'reference' or nothing")
    if switch == "reference":
        return Path("reference", f"{SWITCH}=reference")
    if not _triton_found():
        return Path("reference", "triton is not installed")
    if tensor.dtype == torch.float64:
        return Path("reference", "the kernels accumulate in fp32 and the input is float64")
    if tensor.device.type == "cpu" and _interpreting():
        return Path("triton", "TRITON_INTERPRET=1 runs the kernels on the CPU")
    if tensor.device.type != "cuda":
        return Path("reference", f"the tensors are on {tensor.device.type}")
    if torch.version.hip:
        return Path("reference", "the kernels are tuned and tested for NVIDIA only")
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < OLDEST_CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, OLDEST_CAPABILITY))
        return Path("reference", f"compute capability {have} is below {need}")
    return Path("triton", f"{torch.cuda.get_device_name(tensor.device)}, {tensor.dtype}")
