"""Does selecting a fifth of a million samples as a set take under 60 s and 3 GB on two cores?

    python benchmarks/bench_set_solver.py --out /tmp/bench_set_solver.jsonl

Synthetic alignments and sketches (float32, heavy-tailed norms, twenty strata, half of every fifth stratum toxic).
Every case runs in a process of its own, so that its peak resident memory, inputs and interpreter included, is its own.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ostlight.selection.set_objective import (
    Constraints,
    SetObjective,
    gradient_clusters,
    solve_set,
    stratified_constraints,
)

CASES = ("minibatch", "plain", "minibatch_tokens", "minibatch_quotas", "minibatch_clusters")
BAR_S, BAR_GB = 60.0, 3.0


def samples(rows: int, probes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``f``, ``phi``, stratum and tokens of every sample."""
    rng = np.random.default_rng(0)
    stratum = rng.integers(0, 20, rows)
    phi = rng.standard_normal((rows, probes), dtype=np.float32)
    phi += rng.standard_normal((20, probes), dtype=np.float32)[stratum]
    phi *= (rng.lognormal(size=(rows, 1)) / math.sqrt(probes)).astype(np.float32)
    f = rng.standard_normal(rows) + 0.3 * phi[:, 0] - (rng.random(rows) < 0.5) * (stratum % 5 == 0)
    return f, phi, stratum, rng.integers(50, 800, rows)


def measure(case: str, rows: int, probes: int, share: float) -> None:
    """Prints the time, peak and gaps of one case as ``key value`` lines."""
    f, phi, stratum, tokens = samples(rows, probes)
    before_gb = peak_gb()
    start = time.perf_counter()
    budget = round(share * rows)
    if case.endswith("tokens"):
        constraints = Constraints.tokens(share * float(tokens.sum()), tokens)
    elif case.endswith("quotas"):
        constraints = stratified_constraints(stratum, budget)
    elif case.endswith("clusters"):
        constraints = stratified_constraints(gradient_clusters(f, phi, 32), budget)
    else:
        constraints = Constraints.count(budget, rows)
    scale = {"eta": 2.0, "batch_size": math.inf} if case.startswith("plain") else {"eta": 0.3, "batch_size": 32}
    objective = SetObjective.minibatch(f, phi, **scale, size=constraints.size)
    found = solve_set(objective, constraints)
    print("selection_time", time.perf_counter() - start)
    print("peak_rss", peak_gb())
    print("inputs_rss", before_gb)
    print("selected", len(found.rows))
    print("value", found.value)
    print("greedy_gap", found.greedy_gap)
    print("gap_to_bound", found.gap)


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


UNITS = {"selection_time": "s", "peak_rss": "GB", "inputs_rss": "GB", "selected": "samples"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        measure(options.case, options.rows, options.probes, options.share)
        return
    from _record import Recorder

    record = Recorder("bench_set_solver", options.out)
    missed = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--rows", str(options.rows)]
        command += ["--probes", str(options.probes), "--share", str(options.share)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
        found = {name: float(value) for name, value in (line.split() for line in lines if line)}
        label = f"objective={case} N={options.rows} K={options.probes} share={options.share:g}"
        for metric, value in found.items():
            record.add(case=label, metric=metric, value=value, unit=UNITS.get(metric, "V"), n=1)
        if found["selection_time"] > BAR_S or found["peak_rss"] > BAR_GB:
            missed.append(case)
    if missed:
        raise SystemExit(f"over {BAR_S:g} s or {BAR_GB:g} GB: {', '.join(missed)}")


if __name__ == "__main__":
    main()
