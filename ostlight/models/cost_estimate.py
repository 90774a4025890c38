"""What a long stage will cost, measured on a few samples before it starts."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from ostlight.models.flops import FlopCounter
from ostlight.models.vision.cache import computing_s


def estimate_cost(
    stage: str, work: Callable[[], None], samples: int, whole: float, per_rank: float | None
) -> tuple[float, str]:
    """FLOPs of a whole stage on all ranks (matrix products and attention), and a line for the user.

    The line also has the expected time on this rank and the highest memory so far.

    Args:
        stage: its name, for the line.
        work: a small part of the stage; must change nothing. It is run once to count operations (and to warm up) and
            once more to measure the time. Vision features that the first run stores are computed for every other sample
            too: their time is added; their operations are counted as they are computed (``vision_cache.take_flops``).
        samples: number of samples in ``work``.
        whole: how many times ``work`` fits into the stage, over all ranks.
        per_rank: the same for this rank alone; ``None`` leaves out the second run, and the time.
    """
    before = computing_s()
    with FlopCounter() as counter:
        work()
    flops, expected, features_s = counter.total * whole, "", computing_s() - before
    if per_rank is not None:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        expected = f"about {duration((time.perf_counter() - start + features_s) * per_rank)}, "
    memory = f"peak memory {_peak_bytes() / 2**30:.2g} GiB"
    return flops, f"{stage}: {expected}{flops:.2g} FLOPs, {memory} (measured on {samples} samples)"


def _peak_bytes() -> int:
    """Highest memory so far: of the CUDA device where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """``40 s``, ``3.5 min`` or ``2.0 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
