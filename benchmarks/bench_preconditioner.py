"""What the factors of K-FAC and EK-FAC cost, in plain training steps on one sample.

    python benchmarks/bench_preconditioner.py --out /tmp/bench_preconditioner.jsonl

The factors are taken from 300 samples of DigitMath's pool, as `ost` does it, for all blocks of its proxy. A training
step is forward, backward and AdamW of all parameters on 16 samples; steps are timed before and after each set-up, in
seconds of processor time of one thread.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _fidelity import BATCH_SIZE, TOKENS_PER_BATCH, LabelledPool, WarmedProxy
from _kernels import Spread
from _record import Recorder

from ostlight.influence import kronecker_preconditioner
from ostlight.influence.kronecker import FACTOR_SAMPLES
from ostlight.models.influence_task import SampleTask

STEPS = 20
BAR = 600


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorder = Recorder("bench_preconditioner", options.out, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        pool = LabelledPool.of(0, 2500, Path(folder))
        proxy = WarmedProxy.of(pool, "pretrained", Path(folder))
    samples = pool.samples[:: len(pool.samples) // FACTOR_SAMPLES][:FACTOR_SAMPLES]
    singles = proxy.singles(samples)
    trained = copy.deepcopy(proxy.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)
    batches = [
        batch
        for start in range(0, STEPS * BATCH_SIZE, BATCH_SIZE)
        for batch in trained.batches(samples[start % FACTOR_SAMPLES :][:BATCH_SIZE], TOKENS_PER_BATCH)
    ]

    def train() -> None:
        for batch in batches:
            optimizer.zero_grad()
            SampleTask().losses(trained.model, batch).mean().backward()
            optimizer.step()

    trained_samples = sum(len(batch) for batch in batches)
    train()
    for kind in ("kfac", "ekfac"):

        def set_up(kind: str = kind) -> None:
            kronecker_preconditioner(proxy.model.model, SampleTask(), proxy.parameters, singles, kind)

        set_up()
        ratios = []
        before = seconds(train)
        for _ in range(options.rounds):
            took = seconds(set_up)
            after = seconds(train)
            ratios.append(took / ((before + after) / 2 / trained_samples))
            before = after
        spread = Spread.of(ratios)
        case = f"{kind} parameters=blocks samples={FACTOR_SAMPLES} shape=digitmath device=cpu"
        spread.record(recorder, case, "setup_in_sample_steps", "sample steps")
        bar = f" (bar {BAR}: {'holds' if spread.value <= BAR else 'MISSED'})" if kind == "kfac" else ""
        print(f"{kind}: {spread.value:.0f} [{spread.p20:.0f}, {spread.p80:.0f}] training steps on one sample{bar}")


if __name__ == "__main__":
    main()
