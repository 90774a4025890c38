"""Writes the folder of a run as `ostlight select` leaves it, of any size, in seconds, without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from ostlight.config import load_config
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine
from ostlight.errors import BadRecord
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.scoring.writer import part
from ostlight.selection.scores import FIXED_FIELDS, OK, REJECTED

GROUPS = ("algebra", "charts", "counting", "geometry", "tables", "text", "units")
SOURCES = ("model-a", "model-b", "model-c", "textbook", "web")
TASKS = ("describe", "solve", "verify")
SHARD = 1000
ETA = 0.02
REJECTED_EVERY = 97
"""One record in so many is rejected."""
IMAGES = 40
PHOTO = (480, 360)
"""Width and height of an image."""

Record = dict[str, Any]


def write_run(
    folder: Path,
    records: int,
    probes: int = 64,
    seed: int = 0,
    change: Callable[[int, Record], Record] | None = None,
    images: int = IMAGES,
) -> Path:
    """Writes a run of ``ost`` over ``records`` records: scores with sketches by group, a selection of a fifth,
    quarantine, cost log, notes, and the pool with its images.

    Args:
        probes: for each of the ``GROUPS``.
        change: changes a record before it is written; takes its position and the record.
        images: number of different images, which the records use in turn.

    Returns:
        The run folder.
    """
    data = folder / "pool"
    data.mkdir(parents=True)
    _write_pool(data, records, seed, change, images)
    config = load_config(
        {
            "name": "made",
            "folder": str(folder / "runs"),
            "pool": {"path": str(data / "pool.jsonl")},
            "anchors": {"group": "skill"},
            "selector": {"name": "ost", "options": {"estimator": "second_order", "probes": probes}},
            "budget": {"fraction": 0.2},
        }
    )
    run = RunFolder.of(config)
    score = _write_scores(run, records, probes, seed)
    _write_selection(run, score)
    _write_quarantine(run, Pool.open(data / "pool.jsonl"), score)
    for stage, flops in (("warm-up", 2e12), ("score", 9e13), ("select", 0.0)):
        with run.cost_log.stage(stage, "ost") as entry:
            entry.flops, entry.samples, entry.tokens = flops, records, 500 * records
    agreement = {"estimator": "second_order", "spearman": 0.94, "samples": 64}
    notes = {"step_size": ETA, "groups": list(GROUPS), "rank_agreement": agreement, "vector_bytes": 123_456_789}
    (run.path / "selector").mkdir()
    (run.path / "selector" / "notes.json").write_text(json.dumps(notes))
    return run.path


def record_id(place: int) -> str:
    return f"record-{place:07d}"


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """Writes ``0.jpg``, ``1.jpg``, ..., as large as photographs of their size: about 45 kB each, 18 kB when scaled down
    for a page. All are crops of one large random image."""
    rng = np.random.default_rng(seed)
    side = 2 * PHOTO[0]
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    grain = rng.standard_normal((3, side, side))
    large = np.fft.irfft2(np.fft.rfft2(0.3 * grain + grain[:1]) / frequency**1.4, s=(side, side))
    pixels = np.clip(128 + 60 * large / large.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    width, height = PHOTO
    for k, (x, y) in enumerate(rng.integers(0, (side - width, side - height), (count, 2)).tolist()):
        PILImage.fromarray(pixels[y : y + height, x : x + width]).save(folder / f"{k}.jpg", quality=85)


def _write_pool(
    data: Path, records: int, seed: int, change: Callable[[int, Record], Record] | None, images: int
) -> None:
    write_photos(data, images, seed)
    with (data / "pool.jsonl").open("w") as file:
        for k in range(records):
            record: Record = {
                "id": record_id(k),
                "image": f"{k % images}.jpg",
                "conversations": [
                    {"from": "human", "value": f"<image>\nQuestion {k}: what is seen in the image, and how often?"},
                    {"from": "gpt", "value": f"There are {k % 13} waves, so the answer is {k % 13}."},
                ],
                "source": SOURCES[k % len(SOURCES)],
                "task": TASKS[k % len(TASKS)],
            }
            file.write(json.dumps(change(k, record) if change else record) + "\n")


def _write_scores(run: RunFolder, records: int, probes: int, seed: int) -> np.ndarray:
    """Writes sketches of gradients whose length and direction depend on the source; every 50th copies the one before.

    Returns:
        ``[records]`` scores, NaN where rejected.
    """
    run.scores.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    width = probes * len(GROUPS)
    scores = np.full(records, np.nan)
    for shard in range(-(-records // SHARD)):
        place = np.arange(shard * SHARD, min(records, (shard + 1) * SHARD))
        source = place % len(SOURCES)
        size = rng.lognormal(0, 0.8, len(place)) * (1 + (source == 1))
        phi = rng.standard_normal((len(place), width)) * size[:, None] / width**0.5
        copies = np.flatnonzero(place % 50 == 49)
        phi[copies], size[copies] = phi[copies - 1] * 1.002, size[copies - 1] * 1.002
        cost = ETA**2 / 2 * np.square(phi).sum(1)
        slope = (0.004 * (source != 1) - 0.002) * size + 0.01 * rng.standard_normal(len(place))
        score = ETA * slope - cost
        rejected = place % REJECTED_EVERY == REJECTED_EVERY - 1
        columns: dict[str, Any] = {
            "position": place,
            "id": [record_id(k) for k in place],
            "state": np.where(rejected, REJECTED, OK),
            "reason": [("corrupt_image" if k % 2 else "empty_answer") if a else None for k, a in enumerate(rejected)],
            "field": [None] * len(place),
            "detail": ["synthetic" if a else None for a in rejected],
            "tokens": rng.integers(40, 900, len(place)),
            "answer_cut": np.zeros(len(place), bool),
            "tags": [[("source", SOURCES[k % len(SOURCES)]), ("task", TASKS[k % len(TASKS)])] for k in place],
        }
        numbers = {"loss": rng.gamma(2, 0.3, len(place)), "gradient_norm": size * 3, "alignment": slope}
        numbers |= {"step_size": np.full(len(place), ETA), "cosine": slope / size / 3}
        by_group = score[:, None] + 2e-4 * rng.standard_normal((len(place), len(GROUPS)))
        fields = {f.name: f.type for f in FIXED_FIELDS}
        arrays = {name: pa.array(values, fields[name]) for name, values in columns.items()}
        arrays |= {name: pa.array(v, mask=rejected) for name, v in ({"score": score} | numbers).items()}
        for name, rows in (("phi", phi), ("utility_by_group", by_group)):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]).cast(
                pa.list_(pa.float64())
            )
            arrays[name] = pa.array(
                [None if a else r for a, r in zip(rejected, lists.to_pylist(), strict=True)], lists.type
            )
        pq.write_table(pa.table(arrays), part(run.scores, shard))
        scores[place[~rejected]] = score[~rejected]
    return scores


def _write_selection(run: RunFolder, score: np.ndarray) -> None:
    scored = np.flatnonzero(~np.isnan(score))
    rank = np.full(len(score), -1)
    order = scored[np.argsort(-score[scored], kind="stable")]
    rank[order[: round(0.2 * len(scored))]] = np.arange(round(0.2 * len(scored)))
    table = {
        "position": np.arange(len(score)),
        "id": [record_id(k) for k in range(len(score))],
        "state": np.where(np.isnan(score), REJECTED, OK),
        "score": score,
        "kept": rank >= 0,
        "rank": pa.array(rank, pa.int64(), mask=rank < 0),
    }
    pq.write_table(pa.table(table), run.selection)


def _write_quarantine(run: RunFolder, pool: Pool, score: np.ndarray) -> None:
    quarantine = Quarantine()
    for k in np.flatnonzero(np.isnan(score)).tolist():
        reason = "corrupt_image" if k % 2 else "empty_answer"
        quarantine.add(pool, k, BadRecord(reason, "synthetic"), stage="score", id=record_id(k))
    quarantine.write(run.quarantine)
