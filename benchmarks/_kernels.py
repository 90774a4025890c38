"""What the kernels' benchmarks share: interleaved timing, the two ceilings of a GPU, and the roofline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _record import Recorder

Timed = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A quantity measured ``n`` times: median, and the percentiles around it."""

    value: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        p20, median, p80 = torch.tensor(values, dtype=torch.float64).quantile(
            torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        )
        return cls(float(median), float(p20), float(p80), len(values))

    def record(self, recorder: Recorder, case: str, metric: str, unit: str) -> None:
        recorder.add(case=case, metric=metric, value=self.value, unit=unit, n=self.n, p20=self.p20, p80=self.p80)


def interleaved(functions: dict[str, Timed], device: str, rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds per call of each function, taken in turns so that all see the same machine."""
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(_seconds_cuda(function) if device == "cuda" else _seconds_cpu(function))
    return seconds


def _seconds_cpu(function: Timed) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _seconds_cuda(function: Timed) -> float:
    """Of one call; short ones are repeated for two milliseconds, so that the launch of the first does not count."""
    once = _seconds_of_calls(function, 1)
    return once if once > 2e-3 else _seconds_of_calls(function, math.ceil(2e-3 / once))


def _seconds_of_calls(function: Timed, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def captured(function: Timed) -> Timed:
    """The function's work on the GPU without Python's on the CPU, as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def ratios(top: list[float], bottom: list[float]) -> Spread:
    """Of the two measurements of each round."""
    return Spread.of([a / b for a, b in zip(top, bottom, strict=True)])


def rates(amount: float, seconds: list[float]) -> Spread:
    return Spread.of([amount / s for s in seconds])


@dataclass(frozen=True)
class Ceilings:
    """The most this GPU did in this run."""

    flops_per_s: float
    bytes_per_s: float


def measure_ceilings(recorder: Recorder) -> Ceilings:
    """A large bf16 product on random data, and a large copy counting bytes read and written."""
    x, y = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    sink = torch.empty_like(source)
    seconds = interleaved({"product": lambda: x @ y, "copy": lambda: sink.copy_(source)}, "cuda", 20)
    product = rates(2 * 8192**3, seconds["product"])
    copied = rates(2 * 2**31, seconds["copy"])
    product.record(recorder, "ceiling=matmul dtype=bf16 size=8192", "flops", "FLOP/s")
    copied.record(recorder, "ceiling=copy size=2GiB", "bandwidth", "byte/s")
    return Ceilings(product.value, copied.value)


def draw_roofline(path: Path, title: str, ceilings: Ceilings, points: dict[str, tuple[float, float]]) -> None:
    """``points``: name -> (FLOP per compulsory byte, FLOP/s)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="tight")
    axes = figure.subplots()
    corner = ceilings.flops_per_s / ceilings.bytes_per_s
    left, right = (
        min([corner, *(x for x, _ in points.values())]) / 4,
        max([corner, *(x for x, _ in points.values())]) * 4,
    )
    axes.plot([left, corner, right], [left * ceilings.bytes_per_s, ceilings.flops_per_s, ceilings.flops_per_s], "k-")
    for name, (intensity, flops) in points.items():
        axes.plot(intensity, flops, "o", label=f"{name}: {flops / 1e12:.0f} TFLOP/s")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per compulsory byte", ylabel="FLOP/s", title=title)
    axes.legend(fontsize=8)
    axes.grid(True, which="both", alpha=0.2)
    figure.savefig(path, dpi=140)


class Refused(SystemExit):
    """What was found wrong, and so is not timed."""


def refuse_unless(holds: bool, what: str) -> None:
    """A wrong result is not timed.

    Raises:
        Refused: says ``what``; where nobody catches it the benchmark ends.
    """
    if not holds:
        raise Refused(f"not timed: {what}")
