"""Prefers samples whose answer needs the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import Encoded, encode_reduced
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector


class ImageGrounding(MetricSelector):
    """The samples whose loss rises most without their images: ``l(answer | text) - l(answer | text, image)``.

    The multi-modal gain of MMStar (arXiv 2403.20330), of one sample's loss by the proxy. A sample whose answer can be
    guessed from the question, or whose image belongs to another question, has little to lose. CVS (arXiv 2603.09715)
    has the same aim and takes the question away instead: its evaluator judges whether the answer is valid, with and
    without the question. A sample without an image is rejected (``no_image``). Two forward passes a sample.
    """

    uses_proxy: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True
    column: ClassVar[str] = "image_grounding"

    def setup(self, context: ScoringContext) -> None:
        self.model = context.proxy.model

    def measure(self, batch: Batch) -> dict[str, Any]:
        failures = [
            None if sample.images else BadRecord("no_image", "without an image there is nothing to take away")
            for sample in batch.samples
        ]
        blind = [self._without_images(s, e) for s, e in zip(batch.samples, batch.encoded, strict=True)]
        without = self.model.collator.batch(batch.samples, blind).to(batch.labels.device)
        with torch.no_grad():
            loss, alone = self.model.losses(batch).double(), self.model.losses(without).double()
        return {"image_grounding": alone - loss, "loss": loss, "loss_without_image": alone, "failure": failures}

    def _without_images(self, sample: Sample, whole: Encoded) -> Encoded:
        """The conversation without images, with as many answer tokens as the length limit left in the whole sample."""
        turns = tuple(replace(turn, text=turn.text.replace(IMAGE_PLACEHOLDER, "")) for turn in sample.turns)
        return encode_reduced(self.model.encoder, replace(sample, turns=turns, images=()), whole)
