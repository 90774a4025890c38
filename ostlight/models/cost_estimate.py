"""What a long stage will cost, measured on a few samples before it starts."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ostlight.models.flops import FlopCounter


@dataclass(frozen=True)
class CostEstimate:
    """One measurement, scaled to the whole stage.

    Attributes:
        seconds: expected for the stage, on this rank; NaN where it was not timed.
        flops: of matrix products and attention, for the stage, all ranks.
        peak_bytes: highest memory of the process (CPU) or device so far, the measured samples included.
        measured_on: samples it was measured on.
    """

    seconds: float
    flops: float
    peak_bytes: int
    measured_on: int

    def line(self, what: str) -> str:
        """One line for the user."""
        return (
            f"{what}: about {_duration(self.seconds)}, {self.flops:.2g} FLOPs, peak memory "
            f"{self.peak_bytes / 2**30:.2g} GiB (measured on {self.measured_on} samples)"
        )


def measure(
    work: Callable[[], None], measured_on: int, whole: float, per_rank: float, timed: bool = True
) -> CostEstimate:
    """The cost of a stage, from running ``work`` twice: once counting operations (and warming up), once timed.

    Args:
        work: a small part of the stage; must change nothing.
        measured_on: samples it treats.
        whole: how many times ``work`` fits into the stage, over all ranks.
        per_rank: the same for this rank alone.
        timed: ``False`` leaves the second run out.
    """
    with FlopCounter() as counter:
        work()
    seconds = math.nan
    if timed:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return CostEstimate(seconds * per_rank, counter.total * whole, _peak_bytes(), measured_on)


def _peak_bytes() -> int:
    """Highest memory so far: of the CUDA device where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
