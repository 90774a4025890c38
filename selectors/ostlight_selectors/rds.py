"""RDS+: the anchors take turns, each with the samples whose embeddings are nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ostlight.config.budget import Budget
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import EmbeddingSelector, anchor_embeddings

BY_ANCHOR, BY_GROUP = "similarity_by_anchor", "similarity_by_group"


class RDS(EmbeddingSelector):
    """The anchors in turn name the samples most like them: cosine of position-weighted mean hidden states.

    RDS+ of "Large-Scale Data Selection for Instruction Tuning" (arXiv 2503.01807): embeddings are means over the last
    layer's hidden states with weights ``w_i = i / sum_j j`` for the i-th token. In round k each anchor names the k-th
    nearest sample to it, which is taken unless it is already; where anchors have groups, the groups take turns, by the
    cosine with the nearest of their anchors, as the authors select for several tasks. The score, for thresholds and
    tables, is the cosine with the nearest anchor. One forward pass a sample, by `embed`.
    """

    needs_anchors: ClassVar[bool] = True
    embedding_defaults: ClassVar[Mapping[str, Any]] = {"layers": [1.0], "tokens": "all", "pooling": "weighted_mean"}

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        context.require_anchors("rds")
        anchors = anchor_embeddings(context, self.embedding.shown)
        cosines = (vectors.astype(np.float64) @ anchors.T.astype(np.float64)).astype(np.float32)
        ids = np.array([sample.id for sample in context.anchors], dtype=object)
        columns = {"score": cosines.max(1), BY_ANCHOR: cosines, "nearest_anchor": ids[cosines.argmax(1)]}
        groups = np.array(context.groups, dtype=object)
        names = sorted(set(context.groups))
        if len(names) > 1:
            columns[BY_GROUP] = np.stack([cosines[:, groups == name].max(1) for name in names], axis=1)
        return columns

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        by_position = np.argsort(scores.positions)
        similarities = scores.column(BY_GROUP if BY_GROUP in scores else BY_ANCHOR)
        return budget.within(scores, by_position[in_rounds(similarities[by_position])])


def in_rounds(similarities: np.ndarray) -> np.ndarray:
    """All rows of ``[N, A]`` similarities, in the order in which A anchors name them: in each round every anchor names
    the next of its own ranking, and a row that was named before is passed over.

    Of equal similarities the first row comes first.
    """
    count, anchors = similarities.shape
    named = np.full(count, np.iinfo(np.int64).max)  # number of the first turn in which each row is named
    for anchor in range(anchors):
        ranking = np.argsort(-similarities[:, anchor], kind="stable")
        named[ranking] = np.minimum(named[ranking], np.arange(count) * anchors + anchor)
    return np.argsort(named)
