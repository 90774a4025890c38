"""Photographs of ten classes, 32x32 pixels, with one person's answer each: real mistakes, none put in here.

The folder holds ``pool``, ``anchors``, ``dev`` and ``test`` as Parquet (LLaVA's ``conversations``, image bytes) and
``truth.csv``, which tells whose answer in the pool is wrong. A tag ``label`` is added: the answer as it was given.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from _real_pools import Cut, Record, check_files

from ostlight.config.digitmath import CLEAN
from ostlight.data.sample import IMAGE_PLACEHOLDER

PARTS = ("pool", "anchors", "dev", "test")
WRONG = "wrong"
BASE_SHARE = 0.05
"""Of the pool, labels as they are, that base models see beside the anchors: there is no other clean data."""


def cut_human_noise(data: Path, seed: int = 0) -> Cut:
    """All parts from the folder.

    Raises:
        SystemExit: the folder lacks its files, or a pool record its truth; one line.
    """
    check_files(data, [*(f"{part}.parquet" for part in PARTS), "truth.csv"], "the human-noise records")
    parts = {part: read(data / f"{part}.parquet") for part in PARTS}
    pool = parts["pool"]
    few = np.random.default_rng(seed).permutation(len(pool))[: round(BASE_SHARE * len(pool))]
    parts["base"] = [*parts["anchors"], *(pool[k] for k in sorted(few))]
    truth = true_labels(data)
    if unknown := [record.id for record in pool if record.id not in truth]:
        raise SystemExit(f"{data / 'truth.csv'} says nothing of {len(unknown)} records of the pool, {unknown[0]} first")
    return Cut(parts, [CLEAN if record.answer == truth[record.id] else WRONG for record in pool])


def true_labels(data: Path) -> dict[str, str]:
    """The curated label of each record of the pool, by id; for analysis alone."""
    with (data / "truth.csv").open(newline="") as file:
        return {row["id"]: row["true_label"] for row in csv.DictReader(file)}


def read(file: Path) -> list[Record]:
    """Every record of a file."""
    found = []
    for row in pq.read_table(file).to_pylist():
        question, answer = (turn["value"].strip() for turn in row["conversations"])
        question = question.removeprefix(IMAGE_PLACEHOLDER).strip()
        found.append(Record(row["id"], row["image"]["bytes"], question, answer, {"label": answer}))
    return found
