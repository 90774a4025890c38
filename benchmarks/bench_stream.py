"""Does a pool of a million text records stream through the reader in under 2 GB, and how fast?

    python benchmarks/bench_stream.py --out benchmarks/results/stream.jsonl

Writes the pool to a temporary folder (about 300 MB), indexes it, reads every record once in order and 20,000 at random.
The peak includes the interpreter and its imports; figures are of one run.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _record import Recorder

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample

JUMPS = 20_000


def write_pool(path: Path, records: int, named: bool) -> None:
    """A JSON lines file of short two-turn conversations of about 300 bytes."""
    filler = "the quick brown fox jumps over the lazy dog and runs on into the wide dark wood " * 2
    with path.open("w") as file:
        for n in range(records):
            name = f'"id": "record-{n}", ' if named else ""
            question = f"What is {n} plus one? {filler[: 60 + n % 60]}"
            answer = f"{n + 1}, because {filler[: 60 + n % 90]}"
            file.write(
                f'{{{name}"source": "generated", "conversations": '
                f'[{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": "{answer}"}}]}}\n'
            )


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--unnamed", action="store_true", help="records without an id")
    asked = parser.parse_args()
    case = f"format=jsonl records={asked.records} ids={'no' if asked.unnamed else 'yes'}"
    record = Recorder("bench_stream", asked.out)
    record.add(case=case, metric="peak_rss_before", value=peak_rss_mb(), unit="MB", n=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        write_pool(path, asked.records, not asked.unnamed)
        begun = time.perf_counter()
        pool = Pool.open(path)
        index_s = time.perf_counter() - begun
        record.add(case=case, metric="index_rate", value=len(pool) / index_s, unit="records/s", n=1)
        begun = time.perf_counter()
        good = sum(isinstance(sample, Sample) for _, sample in pool.read(range(len(pool))))
        stream_s = time.perf_counter() - begun
        if good != asked.records:
            raise SystemExit(f"{asked.records - good} of {asked.records} records could not be read")
        record.add(case=case, metric="stream_rate", value=len(pool) / stream_s, unit="records/s", n=1)
        order = np.random.default_rng(0).integers(0, len(pool), JUMPS)
        begun = time.perf_counter()
        for _ in pool.read(order):
            pass
        record.add(case=case, metric="random_rate", value=JUMPS / (time.perf_counter() - begun), unit="records/s", n=1)
    record.add(case=case, metric="peak_rss", value=peak_rss_mb(), unit="MB", n=1)


if __name__ == "__main__":
    main()
