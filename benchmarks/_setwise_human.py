"""Photographs with one human's label each, as features of random patches that no label has touched.

Shared by nothing but `bench_setwise_human.py`. The folder holds ``pool``, ``anchors``, ``dev`` and ``test`` as Parquet
with image bytes and ``conversations``, and ``truth.csv``, which says whose pool label is wrong and is read for analysis
alone.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _setwise_perceptrons import Cut
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, unfold

PARTS = ("pool", "anchors", "dev", "test")
PATCH, STRIDE, FILTERS, KEPT, THRESHOLD = 6, 2, 256, 256, 0.25
"""Patch side and step in pixels, patches drawn, features kept, and what a response must exceed to count."""


def pictures_and_answers(data: Path, part: str) -> tuple[list[str], Tensor, list[str]]:
    """Ids, pictures ``[N, 3, 32, 32]`` in [0, 1] and answers of one part."""
    file = data / f"{part}.parquet"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: name the folder of the human-noise records with --data FOLDER")
    rows = pq.read_table(file).to_pylist()
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
    answers = [row["conversations"][-1]["value"].strip() for row in rows]
    return [row["id"] for row in rows], torch.tensor(pictures).permute(0, 3, 1, 2) / 255, answers


def normalised(patches: Tensor) -> Tensor:
    """``[..., D]`` patches of equal brightness and contrast."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-3).sqrt()


class RandomPatches:
    """Whitened random patches of the pool as filters, both signs pooled over quadrants, then principal components.

    Coates, Ng and Lee, An Analysis of Single-Layer Networks in Unsupervised Feature Learning (2011), with patches
    drawn at random in place of centroids. Fitted on the pool's pictures, never on labels.
    """

    def __init__(self, pool: Tensor, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        which = rng.integers(len(pool), size=20_000)
        corners = rng.integers(pool.shape[-1] - PATCH + 1, size=(20_000, 2))
        drawn = [pool[i, :, y : y + PATCH, x : x + PATCH].flatten() for i, (y, x) in zip(which, corners, strict=True)]
        patches = normalised(torch.stack(drawn))
        self.mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - self.mean).T.cov())
        self.whiten = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
        filters = (patches[:FILTERS] - self.mean) @ self.whiten
        self.filters = normalize(filters, dim=1)
        pooled = self.pooled(pool)
        self.centre, self.spread = pooled.mean(0), pooled.std(0) + 1e-3
        standard = (pooled - self.centre) / self.spread
        values, vectors = torch.linalg.eigh(standard.T.cov())
        self.axes = vectors[:, -KEPT:] * (64 / values[-KEPT:].sum()).sqrt()

    def pooled(self, pictures: Tensor) -> Tensor:
        found = []
        for part in pictures.split(100):
            patches = unfold(part, PATCH, stride=STRIDE).mT
            responses = ((normalised(patches) - self.mean) @ (self.whiten @ self.filters.T)).mT
            side = round(responses.shape[-1] ** 0.5)
            maps = responses.unflatten(-1, (side, side))
            both = torch.cat([(maps - THRESHOLD).relu(), (-maps - THRESHOLD).relu()], 1)
            found.append(adaptive_avg_pool2d(both, 2).flatten(1))
        return torch.cat(found)

    def __call__(self, pictures: Tensor) -> Tensor:
        """``[N, KEPT]`` whose mean square norm over the pool is that of 64 unit pixels."""
        return ((self.pooled(pictures) - self.centre) / self.spread) @ self.axes


def load(data: Path, cache: Path) -> Cut:
    """All parts as features, kept in ``cache`` after the first time, and which pool labels are wrong."""
    found = {part: pictures_and_answers(data, part) for part in PARTS}
    classes = sorted(set(found["anchors"][2]))
    kept = cache / f"patches_{PATCH}_{STRIDE}_{FILTERS}_{KEPT}.pt"
    if kept.is_file():
        features = torch.load(kept)
    else:
        extract = RandomPatches(found["pool"][1])
        features = {part: extract(pictures) for part, (_, pictures, _) in found.items()}
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(features, kept)
    labels = {part: torch.tensor([classes.index(a) for a in answers]) for part, (_, _, answers) in found.items()}
    truth = data / "truth.csv"
    if not truth.is_file():
        raise SystemExit(f"{truth} is missing: without it neither the oracle nor the AUROC can be told")
    with truth.open(newline="") as file:
        known = {row["id"]: row["wrong"] == "1" for row in csv.DictReader(file)}
    wrong = np.array([known[name] for name in found["pool"][0]])
    return Cut({part: (features[part], labels[part]) for part in PARTS}, wrong)
