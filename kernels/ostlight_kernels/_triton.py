"""Triton where it is installed; otherwise just enough for the kernels' files to be imported and never launched."""

from __future__ import annotations

from typing import Any

__all__ = ["HAVE_TRITON", "tl", "triton"]

try:
    import triton
    import triton.language as tl

    HAVE_TRITON = True
except ImportError:

    class _Absent:
        @staticmethod
        def jit(function: Any) -> Any:
            return function

    triton, tl = _Absent(), None
    HAVE_TRITON = False
