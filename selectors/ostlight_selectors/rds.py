"""RDS+: the anchors take turns, each with the sample whose embedding is nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ostlight.config.budget import Budget
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import EmbeddingSelector, anchor_embeddings
from ostlight_selectors.ost.round_robin import turns


class RDS(EmbeddingSelector):
    """The anchors in turn take the sample most like them: cosine of position-weighted mean hidden states.

    RDS+ of "Large-Scale Data Selection for Instruction Tuning" (arXiv 2503.01807): embeddings are means over the last
    layer's hidden states with weights ``w_i = i / sum_j j`` for the i-th token, and each anchor in turn takes its
    nearest sample that is left. The score, for thresholds and tables, is the cosine with the nearest anchor. One
    forward pass a sample, by `embed`.
    """

    needs_anchors: ClassVar[bool] = True
    embedding_defaults: ClassVar[Mapping[str, Any]] = {"layers": [1.0], "tokens": "all", "pooling": "weighted_mean"}

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        context.require_anchors("rds")
        anchors = anchor_embeddings(context, self.embedding.shown)
        cosines = (vectors.astype(np.float64) @ anchors.T.astype(np.float64)).astype(np.float32)
        ids = np.array([sample.id for sample in context.anchors], dtype=object)
        return {"score": cosines.max(1), "similarity_by_anchor": cosines, "nearest_anchor": ids[cosines.argmax(1)]}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        # Turns are taken among positive numbers, and in the order of the positions where cosines are equal. In float64,
        # in which float32 cosines that differ still do after the shift.
        by_position = np.argsort(scores.positions)
        similarities = scores.column("similarity_by_anchor")[by_position].astype(np.float64) + 2
        similarities = np.nan_to_num(similarities, nan=-np.inf)
        is_size = budget.tokens is None and budget.threshold is None
        wanted = budget.size(len(scores)) if is_size else len(scores)
        return budget.within(scores, by_position[turns(similarities, wanted)])
