"""COINCIDE: clusters of layer activations, sampled by transferability and density."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Gt

from ostlight.config.budget import Budget
from ostlight.config.schema import Count
from ostlight.errors import SelectorError
from ostlight.progress import track
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import PARTS, PROXY, EmbeddingSelector, rows_by_cluster, spherical_clusters

log = logging.getLogger("ostlight.selectors.coincide")

SAMPLES_PER_CLUSTER = 66
SAME_CLUSTER = 0.9
"""Centroids with a larger cosine count as one concept: neither transfers to the other."""


class Coincide(EmbeddingSelector):
    """Representative samples of every cluster of activations, more from clusters that transfer and are diverse.

    "Concept-skill Transferability-based Data Selection for Large Vision-Language Models" (COINCIDE, arXiv 2406.10995).
    Attention outputs of five layers at image and at text tokens are clustered. A cluster's transferability S is the
    mean cosine of its centroid's text part with the others', its density D the mean Gaussian kernel between its
    samples, and its share of the budget is ``softmax(S / (D temperature))``; what a small cluster cannot use goes to
    the next. Within a cluster samples are taken greedily so that their maximum mean discrepancy from the cluster is
    least. The score is ``S / D``, the same for a whole cluster. One forward pass a sample, by `embed`; a cluster of n
    samples takes ``n^2`` numbers.
    """

    embedding_defaults: ClassVar[Mapping[str, Any]] = {
        "states": "attention",
        "layers": [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6],
        "tokens": "both",
        "pooling": "mean",
    }
    selection_options: ClassVar[tuple[str, ...]] = ("temperature",)

    @dataclass
    class Options(EmbeddingSelector.Options):
        """Attributes:
        embedding: options of ``embed``: ``{source: FOLDER}``, say.
        clusters: of k-means; ``null`` for one in 66 samples, as the authors have (10,000 of 665,000).
        temperature: of the softmax; the larger, the more alike the shares.
        """

        clusters: Count | None = None
        temperature: Annotated[float, Gt(0)] = 0.1

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        count = self.options.clusters or max(1, round(len(vectors) / SAMPLES_PER_CLUSTER))
        clusters, centroids = spherical_clusters(vectors, count, context.seed)
        used, clusters = np.unique(clusters, return_inverse=True)
        parts = context.dependency_notes.get(self.embedding.shown, {}).get(PARTS)
        if parts is None and self.embedding.options.get("source", PROXY) == PROXY:
            raise SelectorError(
                f"the notes of {self.embedding.shown} do not say which parts of an embedding are of text tokens, by "
                f"which transferability goes; remove {context.dependency_folders[self.embedding.shown].parent} to "
                "embed again"
            )
        parts = parts or ["all"]
        transfer = transferability(text_part(centroids[used].astype(np.float64), parts))
        density, place = np.empty(len(used)), np.empty(len(vectors), dtype=np.int64)
        parts = track(rows_by_cluster(clusters), "comparing within clusters", unit="clusters")
        for cluster, members in enumerate(parts):
            kernel = gaussian_kernel(vectors[members].astype(np.float64))
            density[cluster] = kernel.mean()
            place[members[greedy_discrepancy(kernel)]] = np.arange(len(members))
        log.info(f"{len(used):,} clusters, the largest of {np.bincount(clusters).max():,} samples")
        return {
            "score": (transfer / density)[clusters],
            "cluster": clusters,
            "place_in_cluster": place,
            "transferability": transfer[clusters],
            "density": density[clusters],
        }

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        """Raises:
        SelectorError: a threshold, which leaves no budget to share.
        """
        if budget.threshold is not None:
            raise SelectorError("coincide shares a budget over clusters; give a fraction, a count or tokens")
        costs = np.ones(len(scores)) if budget.tokens is None else scores.tokens.astype(np.float64)
        total = budget.size(len(scores)) if budget.tokens is None else budget.tokens
        return allocate(
            scores.column("cluster"),
            scores.column("place_in_cluster"),
            scores.score / self.options.temperature,
            costs,
            total,
        )


def text_part(vectors: np.ndarray, parts: Sequence[str]) -> np.ndarray:
    """What text tokens alone made of ``[K, D]`` vectors, or all of it where no part is of text tokens alone.

    Args:
        vectors: joined from equal parts.
        parts: the kind of tokens of each part, in order.
    """
    of_text = np.repeat([kind == "text" for kind in parts], vectors.shape[1] // len(parts))
    return vectors[:, of_text] if of_text.any() else vectors


def transferability(centroids: np.ndarray) -> np.ndarray:
    """``[K]`` mean cosine of each centroid ``[K, D]`` with those that differ from it; 0 with none."""
    lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
    centroids = centroids / np.maximum(lengths, np.finfo(np.float64).tiny)
    cosines = centroids @ centroids.T
    differs = cosines <= SAME_CLUSTER
    np.fill_diagonal(differs, False)
    return np.where(differs, cosines, 0).sum(1) / np.maximum(differs.sum(1), 1)


def gaussian_kernel(vectors: np.ndarray) -> np.ndarray:
    """``[n, n]`` ``exp(-|x - y|^2 / 2)`` of unit vectors."""
    return np.asarray(np.exp(np.minimum(vectors @ vectors.T - 1, 0)))


def greedy_discrepancy(kernel: np.ndarray) -> np.ndarray:
    """Rows in the order in which greedy takes them to keep the maximum mean discrepancy from the whole lowest.

    ``MMD^2 = mean K(X, X) + mean K(S, S) - 2 mean K(X, S)`` (Kim et al. 2016, "Examples are not Enough"). Of equal ones
    the first row is taken.

    Args:
        kernel: ``[n, n]``, symmetric.
    """
    to_all = kernel.mean(0)  # mean similarity of each with the whole
    to_taken, within, of_taken = np.zeros(len(kernel)), 0.0, 0.0
    free, order = np.ones(len(kernel), dtype=bool), np.empty(len(kernel), dtype=np.int64)
    for m in range(len(kernel)):
        size = m + 1
        discrepancy = (within + 2 * to_taken + kernel.diagonal()) / size**2 - 2 * (of_taken + to_all) / size
        row = int(np.argmin(np.where(free, discrepancy, np.inf)))
        within += 2 * to_taken[row] + kernel[row, row]
        of_taken += to_all[row]
        to_taken += kernel[row]
        free[row] = False
        order[m] = row
    return order


def allocate(
    clusters: np.ndarray, places: np.ndarray, logits: np.ndarray, costs: np.ndarray, budget: float
) -> np.ndarray:
    """Rows that fit the budget: clusters by falling logit, each up to its softmax share of what is left by then.

    What is left at the end, since clusters are small, is shared again over the rows that are left. Of a budget of fewer
    samples than there are clusters a share is less than one: then clusters have one each, by falling logit.

    Args:
        clusters: ``[N]`` number of each row's cluster.
        places: ``[N]`` order of the rows within their cluster.
        logits: ``[N]``, one value a cluster.
        costs: ``[N]`` what each row takes from the budget.
        budget: sum of the costs that may be kept.
    """
    queues = [rows[np.argsort(places[rows])] for rows in rows_by_cluster(clusters)]
    queues.sort(key=lambda rows: -logits[rows[0]])  # of equal ones the cluster with the lower number
    kept: list[np.ndarray] = []
    few = len(costs) > 0 and budget / costs.mean() < len(queues)
    taken = 1
    while taken:
        queues = [queue for queue in queues if len(queue)]
        log_weights = np.array([logits[queue[0]] for queue in queues])
        shares = np.exp(log_weights - np.logaddexp.accumulate(log_weights[::-1])[::-1])
        taken = 0
        for k, share in enumerate(shares):
            limit = min(budget, max(round(budget * share), costs[queues[k][0]] if few else 0))
            n = int(np.searchsorted(np.cumsum(costs[queues[k]]), limit, side="right"))
            kept.append(queues[k][:n])
            budget -= costs[queues[k][:n]].sum()
            queues[k] = queues[k][n:]
            taken += n
    return np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
