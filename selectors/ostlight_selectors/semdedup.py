"""SemDeDup: near-duplicates within clusters of embeddings are kept once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Interval

from ostlight.config.budget import Budget
from ostlight.config.schema import Count
from ostlight.progress import track
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import EmbeddingSelector, rows_by_cluster, spherical_clusters

BLOCK = 1024
"""Samples of a cluster that are compared with all others at once."""


class SemDeDup(EmbeddingSelector):
    """The samples least like one that comes before them in their cluster, by cosine of their embeddings.

    "SemDeDup: Data-efficient learning at web-scale through semantic deduplication" (arXiv 2303.09540, section 3).
    K-means splits the pool; each cluster is ordered by distance to its centroid, the farthest first, and a sample is a
    duplicate where ``max_j cos(e_i, e_j) > 1 - eps`` over those ``j`` ahead of it. The score is 1 minus that largest
    cosine (at least 0), 1 for the first of a cluster, so that ``score < eps`` says duplicate for any eps. A budget by
    size takes the highest scores: the eps that gives this size, as the authors choose it. No model beyond `embed`.
    """

    selection_options: ClassVar[tuple[str, ...]] = ("eps",)

    @dataclass
    class Options(EmbeddingSelector.Options):
        """Attributes:
        embedding: options of ``embed``: ``{source: FOLDER}``, say.
        clusters: of k-means; ``null`` is the square root of the pool's size, which makes it fastest.
        keep: which of two duplicates: ``hard``, farther from the centroid, or ``easy``, nearer.
        eps: keep no duplicates by this eps, even where the budget has space; ``null`` for no such limit.
        """

        clusters: Count | None = None
        keep: Literal["hard", "easy"] = "hard"
        eps: Annotated[float, Interval(ge=0, le=1)] | None = None

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        clusters, centroids = spherical_clusters(vectors, self.options.clusters, context.seed)
        distance = 1 - np.einsum("nd,nd->n", vectors, centroids[clusters])
        score = np.ones(len(vectors))
        for members in track(rows_by_cluster(clusters), "comparing within clusters", unit="clusters"):
            order = np.argsort(-distance[members] if self.options.keep == "hard" else distance[members], kind="stable")
            members = members[order]
            score[members] = 1 - largest_cosine_before(vectors[members])
        return {"score": score, "cluster": clusters, "centroid_distance": distance}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        rows = budget.top(scores)
        return rows if self.options.eps is None else rows[scores.score[rows] >= self.options.eps]


def largest_cosine_before(vectors: np.ndarray) -> np.ndarray:
    """``[n]`` largest cosine of each of ``[n, D]`` unit vectors with those before it, at least 0; 0 for the first."""
    largest = np.zeros(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK]
        cosines = np.tril(rows @ vectors[: start + len(rows)].T, k=start - 1)
        largest[start : start + len(rows)] = cosines.max(1)
    return np.clip(largest, 0, 1)
