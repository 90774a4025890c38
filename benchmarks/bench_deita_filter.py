"""How long DEITA's representation filter takes, and whether it picks what a loop over single samples picks.

The embeddings are synthetic: rows around fewer centres, so that a part of what is looked at resembles something kept.
``near`` is as in a pool with near-duplicates; with ``alike`` two rows around one centre always resemble each other and
the centres are fewer than the budget, so that it is never filled and the whole pool is looked at.

Run: python benchmarks/bench_deita_filter.py --out benchmarks/results/bench_deita_filter.jsonl
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from _record import Recorder

from ostlight_selectors.deita.filter import distinct

SIMILARITY = 0.9
FRACTION = 0.2
POOLS = {"near": (0.25, 0.33), "alike": (0.15, 0.2)}
"""Centres for each row, and how far rows lie from them."""


def pool(count: int, width: int, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``[count, width]`` fp32 embeddings and a random ranking."""
    share, spread = POOLS[name]
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(round(share * count), width)).astype(np.float32)
    noise = rng.normal(size=(count, width)).astype(np.float32)
    return centres[rng.integers(len(centres), size=count)] + spread * noise, rng.permutation(count)


def one_by_one(embeddings: np.ndarray, order: np.ndarray, count: int) -> list[int]:
    """The filter by its definition."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) == count:
            break
        if not kept or float((unit[kept] @ unit[row]).max()) <= SIMILARITY:
            kept.append(row)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSONL file to append to")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    import faiss  # behind ostlight, which lets waiting threads sleep

    faiss.omp_set_num_threads(arguments.threads)
    recorder = Recorder("bench_deita_filter", arguments.out)

    for name in POOLS:
        embeddings, order = pool(2000, arguments.width, name, seed=1)
        expected = one_by_one(embeddings, order, 400)
        found = distinct(embeddings, order, SIMILARITY, np.ones(2000), 400).tolist()
        same = sum(a == b for a, b in zip(found, expected, strict=False)) / max(len(found), len(expected))
        case = f"N=2000 D={arguments.width} pool={name} budget=20% similarity={SIMILARITY}"
        recorder.add(case=case, metric="picks_as_one_by_one", value=same, unit="share", n=1)

        embeddings, order = pool(arguments.count, arguments.width, name, seed=0)
        costs, budget = np.ones(len(order)), round(FRACTION * len(order))
        start, cpu = time.perf_counter(), time.process_time()
        kept = distinct(embeddings, order, SIMILARITY, costs, budget)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        filled = len(kept) == budget
        looked_at = order.tolist().index(kept[-1]) + 1 if filled else len(order)
        case = f"N={arguments.count} D={arguments.width} pool={name} budget=20% similarity={SIMILARITY}"
        recorder.add(case=case, metric="seconds", value=seconds, unit="s", n=1)
        recorder.add(case=case, metric="cpu_seconds", value=cpu, unit="s", n=1)
        recorder.add(case=case, metric="kept", value=len(kept), unit="samples", n=1)
        recorder.add(case=case, metric="looked_at", value=looked_at, unit="samples", n=1)


if __name__ == "__main__":
    main()
