"""Prefers samples whose question helps least with the answer: instruction-following difficulty (IFD)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from ostlight.config.budget import Budget
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import Encoded, encode_reduced
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector


class IFD(Selector):
    """The samples whose question and image help least with the answer, while they still help.

    "From Quantity to Quality" (arXiv 2308.12032): ``IFD = l(answer | question) / l(answer)``, losses over the answer
    tokens. Here the question is everything that is not trained on, images too: the second loss is that of the same
    conversation with its other turns emptied and their images removed. As there, a sample of ``IFD >= 1`` is never
    kept: its question does not belong to its answer. Two forward passes a sample.
    """

    uses_proxy: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True

    def setup(self, context: ScoringContext) -> None:
        self.model = context.proxy.model

    def score(self, batch: Batch) -> dict[str, Any]:
        answers = [self._answers_only(s, e) for s, e in zip(batch.samples, batch.encoded, strict=True)]
        without = self.model.collator.batch(batch.samples, answers).to(batch.labels.device)
        with torch.no_grad():
            loss, alone = self.model.losses(batch).double(), self.model.losses(without).double()
        ifd = loss / alone
        return {"score": torch.where(ifd < 1, ifd, -ifd), "ifd": ifd, "loss": loss, "loss_without_prompt": alone}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        rows = budget.top(scores)
        return np.compress(scores.column("ifd")[rows] < 1, rows)

    def _answers_only(self, sample: Sample, whole: Encoded) -> Encoded:
        """The answers alone, with as many of their tokens as the length limit left in the whole sample."""
        return encode_reduced(self.model.encoder, without_prompts(sample), whole)


def without_prompts(sample: Sample) -> Sample:
    """The conversation with every turn that is not trained on emptied, and the images of those turns removed."""
    turns: list[Turn] = []
    images: list[ImageRef] = []
    seen = 0
    for turn in sample.turns:
        shown = turn.text.count(IMAGE_PLACEHOLDER)
        if turn.trained:
            images += sample.images[seen : seen + shown]
        turns.append(turn if turn.trained else replace(turn, text=""))
        seen += shown
    return replace(sample, turns=tuple(turns), images=tuple(images))
