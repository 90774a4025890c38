"""Prefers samples whose embeddings resemble the anchors'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ostlight.errors import SelectorError
from ostlight.models.batch import Batch
from ostlight.models.embedding import load_embedder
from ostlight.models.influence_task import make_anchors
from ostlight.pipeline import fingerprint
from ostlight.selection.context import ScoringContext
from ostlight.selection.selector import Selector


class EmbeddingSimilarity(Selector):
    """The samples most like an anchor: cosine of their embeddings with the nearest anchor's, or the mean over anchors.

    Representation-based selection as in "Large-Scale Data Selection for Instruction Tuning" (RDS+, arXiv 2503.01807),
    which averages over tokens and selects for the anchors in turn. Here a score depends on the sample alone: the
    largest cosine of the embedding at its last token. One forward pass a sample.
    """

    uses_proxy: ClassVar[bool] = True
    needs_anchors: ClassVar[bool] = True

    @dataclass
    class Options:
        """Attributes:
        to: ``nearest`` anchor or ``mean`` over all.
        embedder: a sentence-transformers model; ``null`` takes the proxy's last layer at the last token.
        """

        to: Literal["nearest", "mean"] = "nearest"
        embedder: str | None = None

    def fingerprints(self) -> dict[str, str]:
        path = self.options.embedder
        return {} if path is None else {"embedder": fingerprint.of_model(path, "selector.options.embedder")}

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("embedding_similarity")
        proxy = context.proxy
        self.embed = load_embedder(self.options.embedder, proxy.model)
        batches = make_anchors(proxy.model, context.anchors, context.groups, proxy.tokens_per_batch).batches
        self.anchors = np.concatenate([self.embed(batch) for batch in batches])
        self.ids = [sample.id for batch in batches for sample in batch.samples]
        unusable = [i for i, vector in zip(self.ids, self.anchors, strict=True) if not np.isfinite(vector).all()]
        if unusable:
            raise SelectorError(f"anchor {unusable[0]} has no finite embedding; remove it from the anchors file")

    def score(self, batch: Batch) -> dict[str, Any]:
        cosines = self.embed(batch).astype(np.float64) @ self.anchors.T.astype(np.float64)
        nearest = cosines.argmax(1)
        score = cosines.max(1) if self.options.to == "nearest" else cosines.mean(1)
        return {"score": score, "nearest_anchor": [self.ids[k] for k in nearest]}
