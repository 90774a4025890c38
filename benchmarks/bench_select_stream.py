"""Does a pool of a million text records go through `ostlight select` with `random`, and through the reader that feeds
`ost` (encoding included), in under 2 GB, and how fast?

    python benchmarks/bench_select_stream.py --out benchmarks/results/bench_select_stream.jsonl

Peaks are of the whole process up to that point; figures are of one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _record import Recorder
from bench_stream import peak_rss_mb, write_pool

import ostlight
from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.scoring.stream import ShardStream

LIMIT_MB = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--encoded", type=int, default=100_000, help="records to encode, evenly spread over the pool")
    asked = parser.parse_args()
    record = Recorder("bench_select_stream", asked.out)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        write_pool(path, asked.records, named=True)
        select_random(record, path, Path(folder), asked.records)
        encode(record, path, asked.encoded)
    if peak_rss_mb() > LIMIT_MB:
        raise SystemExit(f"peak memory {peak_rss_mb():.0f} MB is above {LIMIT_MB} MB")


def select_random(record: Recorder, path: Path, folder: Path, records: int) -> None:
    """The whole of `ostlight select`: score, audit, pick, write the subset."""
    begun = time.perf_counter()
    config = {"name": "stream", "folder": str(folder), "pool": {"path": str(path)}, "selector": {"name": "random"}}
    compute = {"shard_size": 20_000, "progress": False, "logger": "none", "accelerator": "cpu"}
    selection = ostlight.select(config | {"compute": compute})
    if len(selection.kept) != round(0.2 * records):
        raise SystemExit(f"{len(selection.kept)} of {records} records were kept, not a fifth")
    case = f"selector=random records={records}"
    record.add(case=case, metric="rate", value=records / (time.perf_counter() - begun), unit="records/s", n=1)
    record.add(case=case, metric="peak_rss", value=peak_rss_mb(), unit="MB", n=1)


def encode(record: Recorder, path: Path, wanted: int) -> None:
    """The reader that feeds `ost`: read, encode, sort by length, batch, over shards spread over the whole pool."""
    model = MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")
    pool = ostlight.Pool.open(path)
    shard_size = 1000
    shards = len(pool) // shard_size
    chosen = range(0, shards, max(1, shards * shard_size // wanted))
    begun = time.perf_counter()
    seen = 0
    for shard in ShardStream(pool, chosen, shard_size, model.encoder, model.collator, 16_384):
        seen += len(shard.batch) + len(shard.rejections)
    case = f"selector=ost stage=reader records={len(pool)} encoded={seen}"
    record.add(case=case, metric="rate", value=seen / (time.perf_counter() - begun), unit="records/s", n=1)
    record.add(case=case, metric="peak_rss", value=peak_rss_mb(), unit="MB", n=1)


if __name__ == "__main__":
    main()
