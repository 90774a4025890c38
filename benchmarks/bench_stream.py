"""Does a pool of a million text records go through the reader, `ostlight select` and the encoder in under 2 GB?

    python benchmarks/bench_stream.py --out /tmp/bench_stream.jsonl

Writes the pool to a temporary folder (about 300 MB), opens it, reads every record in order and 20,000 at random;
runs `ostlight select` with `random`; encodes and batches 100,000 records as `ost` reads them. Peak memory is that of
the whole process up to that point, interpreter and imports included; every figure is of one run.
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

import ostlight
from ostlight.config.schema import Compute, Model
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.digitmath.model import checkpoint
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.scoring.stream import Encoding, ShardStream

LIMIT_MB = 2000
RANDOM_READS = 20_000
SHARD_SIZE = 1000


def write_pool(path: Path, records: int) -> None:
    """A JSON Lines file of two-turn conversations of about 300 bytes."""
    filler = "the quick brown fox jumps over the lazy dog and runs on into the wide dark wood " * 2
    with path.open("w") as file:
        for n in range(records):
            question = f"What is {n} plus one? {filler[: 60 + n % 60]}"
            answer = f"{n + 1}, because {filler[: 60 + n % 90]}"
            file.write(
                f'{{"id": "record-{n}", "source": "generated", "conversations": '
                f'[{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": "{answer}"}}]}}\n'
            )


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Stages:
    """Records how many records a second each stage takes, and the peak memory after it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def add(self, case: str, records: int, start: float) -> None:
        rate = records / (time.perf_counter() - start)
        self.recorder.add(case=case, metric="rate", value=rate, unit="records/s", n=1)
        self.recorder.add(case=case, metric="peak_rss", value=peak_rss_mb(), unit="MB", n=1)


def read(stages: Stages, path: Path, records: int) -> None:
    """Opens the pool, reads it in order and at random."""
    start = time.perf_counter()
    pool = Pool.open(path)
    stages.add(f"stage=open records={records}", records, start)
    start = time.perf_counter()
    readable = sum(isinstance(sample, Sample) for _, sample in pool.read(range(len(pool))))
    stages.add(f"stage=read_in_order records={records}", records, start)
    if readable != records:
        raise SystemExit(f"{records - readable} of {records} records could not be read")
    order = np.random.default_rng(0).integers(0, len(pool), RANDOM_READS)
    start = time.perf_counter()
    for _ in pool.read(order):
        pass
    stages.add(f"stage=read_at_random records={records}", RANDOM_READS, start)


def select_random(stages: Stages, path: Path, folder: Path, records: int) -> None:
    """The whole of `ostlight select`: score, verify, select, write the subset."""
    start = time.perf_counter()
    config = {"name": "stream", "folder": str(folder), "pool": {"path": str(path)}, "selector": {"name": "random"}}
    compute = {"shard_size": 20_000, "progress": False, "logger": "none", "accelerator": "cpu"}
    selection = ostlight.select(config | {"compute": compute})
    if len(selection.kept) != round(0.2 * records):
        raise SystemExit(f"{len(selection.kept)} of {records} records were kept, not a fifth")
    stages.add(f"selector=random records={records}", records, start)


def encode(stages: Stages, path: Path, wanted: int) -> None:
    """What feeds `ost`: read, encode, sort by length, batch, over shards spread over the whole pool."""
    model = MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")
    pool = Pool.open(path)
    shards = len(pool) // SHARD_SIZE
    spread = range(0, shards, max(1, shards * SHARD_SIZE // wanted))
    start, encoded = time.perf_counter(), 0
    compute = Compute(shard_size=SHARD_SIZE, tokens_per_batch=16_384)
    for shard in ShardStream(pool, spread, compute, Encoding(model.encoder, model.collator)):
        encoded += len(shard.batch) + len(shard.rejections)
    stages.add(f"selector=ost stage=reader records={len(pool)} encoded={encoded}", encoded, start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--encoded", type=int, default=100_000, help="records to encode, spread over the pool")
    options = parser.parse_args()
    stages = Stages(Recorder("bench_stream", options.out))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        write_pool(path, options.records)
        read(stages, path, options.records)
        select_random(stages, path, Path(folder), options.records)
        encode(stages, path, options.encoded)
    if peak_rss_mb() > LIMIT_MB:
        raise SystemExit(f"peak memory {peak_rss_mb():.0f} MB is above {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
