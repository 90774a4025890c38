"""Triton kernels and their PyTorch references. Needs torch; triton where there is a GPU."""

from __future__ import annotations

from ostlight_kernels.dispatch import KernelPath, explain_dispatch
from ostlight_kernels.grad_dots import grad_dots
from ostlight_kernels.one_step_head import one_step_head
from ostlight_kernels.packing import Packing

__all__ = ["KernelPath", "Packing", "explain_dispatch", "grad_dots", "one_step_head"]
