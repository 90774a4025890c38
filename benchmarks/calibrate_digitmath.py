"""Is DigitMath fit to compare selectors on? Fine-tunes the target on clean, flawed and random data alike.

    python benchmarks/calibrate_digitmath.py --out benchmarks/results/calibrate_digitmath.jsonl
    python benchmarks/calibrate_digitmath.py --split test ...     # once, when everything is settled

Every run takes the same number of optimiser steps (fixed compute); no selector has a part in it. Step size, batch size
and steps were chosen with ``--only oracle`` on the development split.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _record import Recorder
from PIL import Image
from torch import Tensor
from train_digitmath_base import Collator, Example, accuracy, fit
from transformers import AutoModelForImageTextToText

from ostlight.config.digitmath import CLEAN, TASKS
from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.digitmath import DigitMath, build
from ostlight.digitmath.model import checkpoint

SHARE = 0.2
STEPS, BATCH_SIZE, LEARNING_RATE = 100, 32, 5e-4


def read(path: Path) -> list[Example]:
    """The examples of a DigitMath file, in its order."""
    return [
        Example(
            np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))),
            row["conversations"][0]["value"].removeprefix(f"{IMAGE_PLACEHOLDER}\n"),
            row["conversations"][1]["value"],
            row["task"],
        )
        for row in pq.read_table(path).to_pylist()
    ]


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch in a fresh order; a batch may span two epochs, so every batch is full."""
    rng, collate, queue = random.Random(f"batches {seed}"), Collator(), []
    while True:
        while len(queue) < size:
            queue += rng.sample(list(examples), len(examples))
        yield collate(queue[:size])
        del queue[:size]


def within_tasks(examples: list[Example], count: int, rng: random.Random) -> list[Example]:
    """``count`` examples, the tasks in equal numbers up to one, as they are in the pool."""
    by_task = {task: [example for example in examples if example.task == task] for task in TASKS}
    chosen = []
    for k, task in enumerate(TASKS):
        chosen += rng.sample(by_task[task], count // len(TASKS) + (k < count % len(TASKS)))
    return chosen


def conditions(pool: list[Example], defects: list[str]) -> dict[str, Callable[[int], list[Example]]]:
    """What each run trains on, for a seed."""
    count = round(SHARE * len(pool))
    clean = [example for example, defect in zip(pool, defects, strict=True) if defect == CLEAN]
    return {
        "oracle": lambda seed: within_tasks(clean, count, random.Random(f"oracle {seed}")),
        "oracle_any_task": lambda seed: random.Random(f"oracle {seed}").sample(clean, count),
        "clean_all": lambda seed: clean,
        "random": lambda seed: random.Random(f"random {seed}").sample(pool, count),
        "full": lambda seed: pool,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--only", nargs="+", default=["base", "oracle", "oracle_any_task", "random", "full"])
    parser.add_argument("--size", default="target")
    parser.add_argument("--folder", type=Path, default=None, help="a checkpoint other than the committed one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        files = build(DigitMath(seed=options.pool_seed), Path(scratch))
        pool, held_out = read(files.pool), read(files.dev if options.split == "dev" else files.test)
        defects = pq.read_table(files.defect_labels)["defect"].to_pylist()
    recorder = Recorder("calibrate_digitmath", options.out)
    settings = f"steps={options.steps} batch={options.batch_size} lr={options.learning_rate:g} split={options.split}"
    makers = {"base": None} | conditions(pool, defects)
    for name in options.only:
        results, seconds = [], []
        for seed in range(options.seeds if name != "base" else 1):
            model = AutoModelForImageTextToText.from_pretrained(
                options.folder or checkpoint(options.size), dtype=torch.float32
            )
            torch.manual_seed(seed)
            if name != "base":
                examples, began = makers[name](seed), time.perf_counter()
                fit(model, batches(examples, options.batch_size, seed), options.steps, options.learning_rate)
                seconds.append(time.perf_counter() - began)
            results.append(accuracy(model, held_out))
        case = f"data={name} model={options.size} {settings}"
        for metric in (*TASKS, "mean"):
            add(recorder, case, f"accuracy_{metric}", [found[metric] for found in results], "share")
        if seconds:
            add(recorder, case, "train_time", seconds, "s")


def add(recorder: Recorder, case: str, metric: str, values: list[float], unit: str) -> None:
    """One figure over seeds: the median with the 20th and 80th percentile."""
    low, high = (float(np.percentile(values, q)) for q in (20, 80))
    recorder.add(case=case, metric=metric, value=statistics.median(values), unit=unit, n=len(values), p20=low, p80=high)


if __name__ == "__main__":
    main()
