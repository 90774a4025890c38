"""Facility location: samples that together resemble the whole pool."""

from __future__ import annotations

import heapq
import logging
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from ostlight.config.schema import Count
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import EmbeddingSelector, nearest_neighbours

log = logging.getLogger("ostlight.selectors.facility_location")

STEP = 2.0**-16
"""Cosines are rounded to multiples of it: sums of them are then exact, and rounding decides between no two samples."""


class FacilityLocation(EmbeddingSelector):
    """The set in which every sample of the pool finds one most like it: lazy greedy on cosines of embeddings.

    Maximises ``f(S) = sum_i max_{j in S} s_ij`` (Lin and Bilmes 2011, "A Class of Submodular Functions for Document
    Summarization", ACL P11-1052), ``s_ij = max(0, cos(e_i, e_j))`` for i's nearest neighbours ``j`` and itself, else 0.
    Greedy takes the sample with the largest gain each time (at least ``1 - 1/e`` of the optimum: Nemhauser et al.
    1978), lazily (Minoux 1978). The score is a sample's gain when it is taken, which never grows, so any budget keeps
    what greedy takes first. No model beyond `embed`; the neighbours cost ``N^2 D`` operations.
    """

    @dataclass
    class Options(EmbeddingSelector.Options):
        """Attributes:
        embedding: options of ``embed``: ``{source: FOLDER}``, say.
        neighbours: per sample; likeness beyond them counts 0.
        """

        neighbours: Count = 64

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        log.info(f"neighbours of {len(vectors):,} samples, then greedy over all of them")
        return {"score": greedy_gains(cosine_neighbours(vectors, self.options.neighbours))}


def cosine_neighbours(vectors: np.ndarray, neighbours: int) -> csr_array:
    """``[N, N]`` sparse: row i holds the cosines with i's nearest neighbours, at least 0, and 1 with itself.

    Args:
        vectors: ``[N, D]`` of unit length.
        neighbours: of each, itself not counted; at most N - 1 there are.
    """
    own = csr_array((np.ones(len(vectors)), (np.arange(len(vectors)),) * 2), shape=(len(vectors),) * 2)
    cosines, columns = nearest_neighbours(vectors, neighbours)
    rows = np.repeat(np.arange(len(vectors)), cosines.shape[1])
    likeness = np.round(np.maximum(0, cosines.ravel()) / STEP) * STEP
    return csr_array(own + csr_array((likeness, (rows, columns.ravel())), shape=own.shape))


def greedy_gains(similarity: csr_array) -> np.ndarray:
    """``[N]`` gain in ``sum_i max_{j in S} s_ij`` of each sample when greedy takes it.

    Of equal gains the first row is taken.
    """
    covers = similarity.tocsc()  # column j: the samples that j covers, and how well
    best = np.zeros(covers.shape[0])
    gains = np.empty(len(best))

    def covered(j: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(covers.indptr[j], covers.indptr[j + 1])
        return covers.indices[part], covers.data[part]

    # Gains only fall: one that is up to date and still the largest needs no look at the others.
    heap = [(-gain, j) for j, gain in enumerate(np.asarray(covers.sum(0)).ravel().tolist())]
    heapq.heapify(heap)
    while heap:
        _, j = heap[0]
        samples, likeness = covered(j)
        gain = float(np.maximum(likeness - best[samples], 0).sum())
        if len(heap) > 1 and (-gain, j) > min(heap[1:3]):
            heapq.heapreplace(heap, (-gain, j))
            continue
        heapq.heappop(heap)
        best[samples] = np.maximum(best[samples], likeness)
        gains[j] = gain
    return gains
