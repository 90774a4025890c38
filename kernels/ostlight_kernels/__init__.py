"""Triton kernels and their PyTorch references. Needs torch; triton where there is a GPU."""

from __future__ import annotations

from ostlight_kernels.dispatch import Path, explain
from ostlight_kernels.grad_dots import grad_dots
from ostlight_kernels.one_step_head import one_step_head
from ostlight_kernels.packing import Packing

__all__ = ["Packing", "Path", "explain", "grad_dots", "one_step_head"]
