"""How running out of memory looks."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the machine: PyTorch has no class of its own for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
