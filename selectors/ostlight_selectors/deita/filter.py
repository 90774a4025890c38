"""DEITA's diversity filter (arXiv 2312.15685, Repr Filter)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostlight.errors import SelectorError
from ostlight.models.embedding import unit
from ostlight.progress import track

BLOCK = 1024
"""Samples compared at once; does not change the result."""


def filter_similar(
    embeddings: np.ndarray,
    order: np.ndarray,
    similarity: float,
    costs: np.ndarray,
    budget: float,
    block: int = BLOCK,
) -> np.ndarray:
    """Goes down the ranking and keeps each sample whose cosine with every sample kept before it is at most
    ``similarity``, until the next one kept would exceed the budget. Dropped samples are not compared with.

    Exact (faiss' flat index, inner products) up to the rounding of fp32, for any block size.

    Args:
        embeddings: ``[N, D]``, of any length but 0.
        order: rows, best first.
        similarity: largest cosine between two that are kept.
        costs: ``[N]`` what each takes from the budget: 1, or its tokens.
        budget: sum of the costs that may be kept.

    Returns:
        Rows kept, best first.

    Raises:
        SelectorError: faiss is not installed.
    """
    index = _flat_index(embeddings.shape[1])
    kept: list[int] = []
    blocks = range(0, len(order), block)
    for start in track(blocks, "leaving out what resembles", unit="blocks"):
        rows = order[start : start + block]
        vectors = unit(embeddings[rows])
        nearest = index.search(vectors, 1)[0][:, 0] if index.ntotal else np.full(len(rows), -np.inf)
        free = np.flatnonzero(nearest <= similarity)
        rows, vectors = rows[free], vectors[free]
        resembles = vectors @ vectors.T > similarity
        blocked = np.zeros(len(rows), dtype=bool)
        new: list[int] = []
        for k, row in enumerate(rows.tolist()):
            if blocked[k]:
                continue
            if costs[row] > budget:
                return np.array(kept, dtype=np.int64)
            budget -= costs[row]
            kept.append(row)
            new.append(k)
            blocked |= resembles[k]
        index.add(vectors[new])
    return np.array(kept, dtype=np.int64)


def _flat_index(width: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SelectorError("deita needs faiss for its nearest neighbours; pip install 'ostlight[deita]'") from error
    return faiss.IndexFlatIP(width)
