"""What does a pool of ten million records cost: selecting again, the audit, the report, the first score, Parquet?

    python benchmarks/bench_ten_million.py --out /tmp/bench_ten_million.jsonl

Writes to a temporary folder (6 GB): a pool of ten million short records in JSON lines with the finished score table of
a run over it (score files of 1,000 rows, three tags, columns that selectors store), and pools of a million records in
JSON lines and of images in Parquet. Each operation runs in a process of its own; figures are its wall time, its
processor time and the most memory it held. Every figure is of one run. ``--only`` names some of the operations.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _record import Recorder

import ostlight
from ostlight.config import load_config
from ostlight.config.budget import Budget
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.digitmath.model import checkpoint
from ostlight.pipeline.inputs import open_pool, read_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool, scoring_fingerprints
from ostlight.pipeline.scoring.writer import audit, part
from ostlight.reporting.page import write_report
from ostlight.selection.registry import create
from ostlight.selection.scores import FIXED_FIELDS, OK, REJECTED, Scores
from ostlight.selection.selector import Selector
from ostlight.selection.strata import select_top
from ostlight.selection.underrepresented import find_underrepresented

SHARD = 1_000
REJECTED_EVERY = 97
TAG_VALUES = 12, 7, 400
"""Of the tags source, task and topic."""
SKETCH = 8
"""Numbers in a column that selecting by score does not need."""
IMAGE_BYTES = 41_000
ROWS_IN_GROUP = 790
"""Of the Parquet pool: 32 MB."""
RANDOM_READS = 2_000
LIMITS = {"reselect": (120.0, 6_000.0), "first_score": (10.0, None)}
"""Seconds and MB."""


class FirstScore(BaseException):
    """Ends a run at its first batch; a selector's own errors are counted against its samples."""


class StopsAtFirstBatch(Selector):
    """Stops when it is given its first batch."""

    uses_proxy = True

    def score(self, batch: Any) -> Any:
        raise FirstScore


def config_of(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    compute = {"shard_size": SHARD, "progress": False, "logger": "none", "accelerator": "cpu"}
    return {"name": name, "folder": str(folder), "selector": {"name": "length"}, "compute": compute} | settings


def write_texts(path: Path, records: int) -> None:
    """Records of one turn each way, about 190 bytes, with three tags."""
    with path.open("w") as file:
        for start in range(0, records, 10_000):
            file.writelines(
                f'{{"id": "record-{n:08d}", "source": "source-{n % TAG_VALUES[0]}", '
                f'"task": "task-{n % TAG_VALUES[1]}", '
                f'"topic": "topic-{n * 7919 % TAG_VALUES[2]}", "question": "What is {n} plus one?", '
                f'"answer": "It is {n + 1}, as {n} and one make that."}}\n'
                for n in range(start, min(start + 10_000, records))
            )


def write_scores(folder: RunFolder, records: int) -> None:
    """The score table of a run, as the framework writes it; one record in ``REJECTED_EVERY`` is rejected."""
    folder.scores.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = pa.array(["source", "task", "topic"])
    values = pa.array([f"{name}-{k}" for name, n in zip(names.to_pylist(), TAG_VALUES, strict=True) for k in range(n)])
    first_value = np.cumsum([0, *TAG_VALUES[:-1]])
    for shard in range(-(-records // SHARD)):
        n = np.arange(shard * SHARD, min((shard + 1) * SHARD, records))
        rejected = n % REJECTED_EVERY == 0
        tag = np.stack([n % TAG_VALUES[0], n % TAG_VALUES[1], n * 7919 % TAG_VALUES[2]], 1) + first_value
        offsets = pa.array(np.concatenate([[0], np.cumsum(np.where(rejected, 0, 3))]), pa.int32())
        tags = values.take(pa.array(tag[~rejected].ravel()))
        names_of_tags = names.take(pa.array(np.tile(np.arange(3), int((~rejected).sum()))))
        score = np.round(rng.normal(size=len(n)), 3)  # with ties
        sketch = rng.normal(size=len(n) * SKETCH).astype(np.float32)
        columns = {
            "position": n,
            "id": pc.binary_join_element_wise("record", pc.utf8_lpad(pc.cast(n, pa.string()), 8, "0"), "-"),
            "state": np.where(rejected, REJECTED, OK),
            "reason": pa.array(np.full(len(n), "empty_answer"), mask=~rejected),
            "field": pa.array(np.full(len(n), "answer"), mask=~rejected),
            "detail": pa.array(np.full(len(n), "the answer is empty"), mask=~rejected),
            "tokens": rng.integers(20, 400, len(n)).astype(np.int32),
            "answer_cut": np.zeros(len(n), bool),
            "tags": pa.MapArray.from_arrays(offsets, names_of_tags, tags),
            "score": pa.array(score, mask=rejected),
            "loss": pa.array(rng.normal(size=len(n)), mask=rejected),
            "phi": pa.FixedSizeListArray.from_arrays(sketch, SKETCH),
        }
        arrays = {
            name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()
        }
        more = [pa.field(name, arrays[name].type) for name in ("loss", "phi")]
        table = pa.table(list(arrays.values()), schema=pa.schema([*FIXED_FIELDS, *more]))
        pq.write_table(table, part(folder.scores, shard))


def run_config(root: Path, **budget: Any) -> dict[str, Any]:
    return config_of(root, "run", pool={"path": str(root / "pool.jsonl")}, budget=budget)


def make_run(root: Path, records: int) -> None:
    """A run folder with the scores of the whole pool, the pool's index, and nothing selected yet."""
    write_texts(root / "pool.jsonl", records)
    config = load_config(run_config(root))
    folder = RunFolder.of(config)
    write_scores(folder, records)
    open_pool(config.pool, "pool", folder=folder)


def claim_scores(root: Path) -> None:
    """Notes in the run's manifest that the scores were made by the code as it is."""
    config = load_config(run_config(root))
    folder = RunFolder.of(config)
    (folder.path / "manifest.json").unlink(missing_ok=True)
    selector = create(config.selector.name, config.selector.options)
    pool = open_pool(config.pool, "pool", folder=folder)
    folder.claim("scores", scoring_fingerprints(config, pool, read_anchors(config), selector))


def reselect(root: Path, records: int, **budget: Any) -> None:
    """`ostlight select` in the finished run with another budget, the subset included."""
    kept = ostlight.select(run_config(root, **budget)).kept
    assert len(kept)


def read_columns(root: Path, records: int) -> None:
    scores = Scores.read(root / "run" / "scores")
    assert len(scores.score) == len(scores.positions) == records - -(-records // REJECTED_EVERY)


def rank(root: Path, records: int) -> None:
    assert len(select_top(Scores.read(root / "run" / "scores"), Budget(fraction=0.2)))


def rank_by_task(root: Path, records: int) -> None:
    assert len(select_top(Scores.read(root / "run" / "scores"), Budget(fraction=0.2, stratify_by="task")))


def shares(root: Path, records: int) -> None:
    scores = Scores.read(root / "run" / "scores")
    find_underrepresented(scores, np.arange(0, len(scores), 5))


def check_table(root: Path, records: int) -> None:
    audit(root / "run" / "scores", records)


def report(root: Path, records: int) -> None:
    write_report(root / "run")


def open_again(root: Path, records: int) -> None:
    """The pool by its index."""
    config = load_config(run_config(root))
    assert len(open_pool(config.pool, "pool", folder=RunFolder.of(config))) == records


def make_first(root: Path, records: int) -> None:
    """A pool of texts with its index, and 100 anchors of which three are in it."""
    write_texts(root / "first.jsonl", records)
    lines = [f'{{"question": "What is {n} plus one?", "answer": "It is {n + 1}."}}' for n in range(97)]
    with (root / "first.jsonl").open() as file:
        lines += [next(file).strip() for _ in range(3)]
    (root / "anchors.jsonl").write_text("\n".join(lines))
    config = load_config(first_config(root))
    open_pool(config.pool, "pool", folder=RunFolder.of(config))


def first_config(root: Path) -> dict[str, Any]:
    proxy = {"path": str(checkpoint("proxy")), "warmup": {"fraction": 0}}
    data = {"pool": {"path": str(root / "first.jsonl")}, "anchors": {"path": str(root / "anchors.jsonl")}}
    return config_of(root, "first", proxy=proxy, **data)


def first_score(root: Path, records: int) -> None:
    """From the start of `ostlight select` to the selector's first batch; the index is there."""
    config = load_config(first_config(root))
    folder = RunFolder.of(config)
    pool = open_pool(config.pool, "pool", folder=folder)
    try:
        score_pool(ScoringJob(config, folder, pool, StopsAtFirstBatch()))
    except FirstScore:
        pass
    else:
        raise AssertionError("no batch was scored")


def make_parquet(root: Path, records: int) -> None:
    """Records with random bytes as large as a small photograph, in row groups of 32 MB."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [("id", pa.string()), ("question", pa.string()), ("answer", pa.string()), ("image", pa.binary())]
    )
    with pq.ParquetWriter(root / "images.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, records, ROWS_IN_GROUP):
            numbers = range(start, min(start + ROWS_IN_GROUP, records))
            columns = {
                "id": [f"image-{n}" for n in numbers],
                "question": [f"What is {n}?" for n in numbers],
                "answer": ["A number."] * len(numbers),
                "image": [rng.bytes(IMAGE_BYTES) for _ in numbers],
            }
            writer.write_table(pa.table(columns, schema=schema))
    Pool.open(root / "images.parquet", index=root / "index")


def parquet_at_random(root: Path, records: int) -> None:
    pool = Pool.open(root / "images.parquet", index=root / "index")
    order = pool.random_positions(RANDOM_READS, 0)
    assert all(isinstance(sample, Sample) for _, sample in pool.read(order))


OPERATIONS: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {
    "open_again": ("run", open_again, {}),
    "audit": ("run", check_table, {}),
    "read_columns": ("run", read_columns, {}),
    "rank": ("run", rank, {}),
    "rank_by_task": ("run", rank_by_task, {}),
    "shares": ("run", shares, {}),
    "reselect": ("run", reselect, {"fraction": 0.1}),
    "reselect_by_task": ("run", reselect, {"fraction": 0.05, "stratify_by": "task"}),
    "report": ("run", report, {}),
    "first_score": ("first", first_score, {}),
    "parquet_at_random": ("parquet", parquet_at_random, {}),
}
MAKERS = {"run": make_run, "first": make_first, "parquet": make_parquet}


def measured(function: Callable[..., None], arguments: tuple[Any, ...], more: dict[str, Any]) -> dict[str, float]:
    """Runs in a process of its own: seconds by the clock, seconds of processors, MB at most, MB read from disk."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, function, arguments, more))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with status {process.exitcode}")
    return dict(queue.get())


def _measure(queue: Any, function: Callable[..., None], arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.WARNING)
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    function(*arguments, **more)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    queue.put({"wall": time.perf_counter() - wall, "cpu": cpu, "peak_rss": _peak_mb()})


def _peak_mb() -> float:
    """The most memory this process held; ``getrusage`` would begin with that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("the system does not say how much memory a process held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--records", type=int, default=10_000_000, help="rows of the score table")
    parser.add_argument("--first", type=int, default=1_000_000, help="records of the pool of the first score")
    parser.add_argument("--images", type=int, default=10_000, help="records of the Parquet pool, 41 kB each")
    parser.add_argument("--only", nargs="*", choices=[*OPERATIONS], default=[*OPERATIONS])
    parser.add_argument("--folder", type=Path, help="keeps what is made there, and takes what is there")
    options = parser.parse_args()
    recorder = Recorder("bench_ten_million", options.out)
    sizes = {"run": options.records, "first": options.first, "parquet": options.images}
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            needs, function, more = OPERATIONS[name]
            made = root / f"{needs}-{sizes[needs]}.made"
            if not made.exists():
                measured(MAKERS[needs], (root, sizes[needs]), {})
                made.touch()
            if needs == "run":
                measured(claim_scores, (root,), {})
            figures = measured(function, (root, sizes[needs]), more)
            for metric, value in figures.items():
                unit = "MB" if metric == "peak_rss" else "s"
                recorder.add(
                    case=f"operation={name} records={sizes[needs]}", metric=metric, value=value, unit=unit, n=1
                )
            seconds, megabytes = LIMITS.get(name, (None, None))
            if (seconds and figures["wall"] > seconds) or (megabytes and figures["peak_rss"] > megabytes):
                missed.append(f"{name}: {json.dumps(figures)}, limits {seconds} s and {megabytes} MB")
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
