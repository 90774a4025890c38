"""The handwritten digits, their split into parts, and the images made of them."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

CELL_PIXELS = 8
GRID = 2
IMAGE_PIXELS = GRID * CELL_PIXELS
INK_STEP = 15
"""Grey levels between two of the 17 ink values: 16 of them fit into a byte without loss."""

SPLIT_SHARES = {"pretraining": 0.46, "pool": 0.24, "anchors": 0.08, "dev": 0.08, "test": 0.14}


@functools.cache
def load() -> tuple[np.ndarray, np.ndarray]:
    """Ink ``uint8 [1797, 8, 8]`` in 0..16 and labels ``int64 [1797]``: scikit-learn's copy of UCI's optical digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.uint8), data.target


@functools.cache
def split() -> dict[str, tuple[int, ...]]:
    """Indices of the digit images for each part, disjoint and with every digit in the same proportion.

    Independent of any configuration's seed: the committed checkpoints were trained on ``pretraining``.
    """
    labels = load()[1]
    parts: dict[str, list[int]] = {name: [] for name in SPLIT_SHARES}
    for digit in range(10):
        members = [int(index) for index in np.flatnonzero(labels == digit)]
        random.Random(f"digitmath split {digit}").shuffle(members)
        start, share = 0, 0.0
        for name, part in SPLIT_SHARES.items():
            share += part
            stop = round(share * len(members))
            parts[name] += members[start:stop]
            start = stop
    return {name: tuple(sorted(members)) for name, members in parts.items()}


def labels_of(cells: Sequence[int]) -> tuple[int, ...]:
    """The digits that the images with these indices show."""
    labels = load()[1]
    return tuple(int(labels[index]) for index in cells)


def render(cells: Sequence[int]) -> np.ndarray:
    """Grey levels ``uint8 [16, 16]`` of the image whose four cells, row by row, are these digit images."""
    ink = load()[0][list(cells)].reshape(GRID, GRID, CELL_PIXELS, CELL_PIXELS)
    return np.ascontiguousarray(ink.transpose(0, 2, 1, 3).reshape(IMAGE_PIXELS, IMAGE_PIXELS) * INK_STEP)


def add_noise(pixels: np.ndarray, rng: random.Random, amount: int = 12) -> np.ndarray:
    """The image with ``amount`` pixels a few grey levels off: other bytes, the same to the eye."""
    changed = pixels.copy()
    for position in rng.sample(range(pixels.size), amount):
        level = int(changed.flat[position])
        changed.flat[position] = max(0, level - 3) if level >= 120 else level + 3
    return changed


def png(pixels: np.ndarray) -> bytes:
    """Lossless PNG of a greyscale image."""
    out = io.BytesIO()
    Image.fromarray(pixels, mode="L").save(out, format="PNG")
    return out.getvalue()
