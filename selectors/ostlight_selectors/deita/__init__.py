"""DEITA: complexity times quality, then a diversity filter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from ostlight.config.budget import Budget
from ostlight.config.schema import Count, Model
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch
from ostlight.models.embedding import load_embedder
from ostlight.pipeline import fingerprint
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight_selectors.deita.filter import filter_similar
from ostlight_selectors.deita.prompts import COMPLEXITY, QUALITY, Prompt, question_answer_pairs
from ostlight_selectors.deita.scorer import ChatScorer, Scorer, load_scorer


class Deita(Selector):
    """Complexity times quality by two scorer models, without near-duplicates (cosine at most 0.9).

    "What Makes Good Data for Alignment?" (arXiv 2312.15685). Each score is the mean of 1 to 6 under a scorer's
    probabilities of the six score tokens; a sample's is the sum over its turns of complexity x quality. A text-only
    scorer, as the published ones are, reads the text alone; a vision model sees the images. Costs two forward
    passes of the scorers for each turn, and one of the proxy where it embeds.
    """

    uses_proxy = True
    selection_options = ("similarity",)

    @dataclass
    class Options:
        """Attributes:
        complexity, quality: scorer models, folders or hub names; ``null`` asks the proxy.
        embedder: a sentence-transformers model; ``null`` takes the proxy's last layer at the last token.
        similarity: largest cosine between two selected samples.
        max_length: tokens of a scorer's prompt; question and answer are cut to fit.
        """

        complexity: str | None = "hkust-nlp/deita-complexity-scorer"
        quality: str | None = "hkust-nlp/deita-quality-scorer"
        embedder: str | None = None
        similarity: Annotated[float, Interval(ge=-1, le=1)] = 0.9
        max_length: Count = 2048

    def fingerprints(self) -> dict[str, str]:
        paths = {name: getattr(self.options, name) for name in ("complexity", "quality", "embedder")}
        return {n: fingerprint.of_model(p, f"selector.options.{n}") for n, p in paths.items() if p is not None}

    def setup(self, context: ScoringContext) -> None:
        self.complexity = self._scorer("complexity", COMPLEXITY, context)
        self.quality = self._scorer("quality", QUALITY, context)
        self.embed = load_embedder(self.options.embedder, context.proxy.model)

    def _scorer(self, option: str, prompt: Prompt, context: ScoringContext) -> Scorer:
        path, proxy = getattr(self.options, option), context.proxy
        if path is None:
            model, limits = proxy.model, (self.options.max_length, proxy.tokens_per_batch)
            return ChatScorer(model.model, model.encoder, model.collator, prompt, *limits)
        dtype: Any = str(proxy.model.model.dtype).removeprefix("torch.")
        settings = Model(path=path, dtype=dtype, max_length=self.options.max_length)
        return load_scorer(settings, prompt, option, proxy.tokens_per_batch, proxy.model.device)

    def score(self, batch: Batch) -> dict[str, Any]:
        pairs_by_sample = [question_answer_pairs(sample) for sample in batch.samples]
        pairs = [pair for of_sample in pairs_by_sample for pair in of_sample]
        before = self.complexity.tokens_read + self.quality.tokens_read
        scores = zip(self.complexity.scores(pairs), self.quality.scores(pairs), strict=True)
        self.usage.add(tokens_in=self.complexity.tokens_read + self.quality.tokens_read - before)
        rows = [
            _sample_columns(list(islice(scores, len(of_sample))), vector)
            for of_sample, vector in zip(pairs_by_sample, self.embed(batch), strict=True)
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        order = np.lexsort((scores.positions, -scores.score))
        costs, most = np.ones(len(scores)), float(len(scores))
        if budget.threshold is not None:
            order = order[scores.score[order] >= budget.threshold]
        elif budget.tokens is not None:
            costs, most = scores.tokens, float(budget.tokens)
        else:
            most = float(budget.size(len(scores)))
        return filter_similar(scores.column("embedding"), order, self.options.similarity, costs, most)


def _sample_columns(pairs: list[tuple[float | BadRecord, float | BadRecord]], vector: np.ndarray) -> dict[str, Any]:
    failure = next((x for pair in pairs for x in pair if isinstance(x, BadRecord)), None)
    if failure is None and not np.isfinite(vector).all():
        failure = BadRecord("embedding_not_finite", "the embedding holds NaN or infinity, or is zero")
    scored = [(c, q) for c, q in pairs if not (isinstance(c, BadRecord) or isinstance(q, BadRecord))]
    score = sum(c * q for c, q in scored) if failure is None else float("nan")
    return {
        "score": score,
        "complexity": [c for c, _ in scored],
        "quality": [q for _, q in scored],
        "embedding": vector,
        "failure": failure,
    }
