"""Looks for anchors among the records as they are scored, so that no pass over the pool is needed to find them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning as L

from ostlight.data.overlap import OverlapCheck, overlap_message
from ostlight.data.sample import Sample
from ostlight.influence.shared_passes import of_all_ranks
from ostlight.pipeline.scoring.stream import ShardBatch

log = logging.getLogger(__name__)


class OverlapWatch(L.Callback):
    """Warns of anchors that are also in the pool: at the first one, and of all of them when scoring is done.

    Records that an earlier, interrupted run has scored were looked at by that run.
    """

    def __init__(self, anchors: Sequence[Sample]) -> None:
        self._check = OverlapCheck(anchors)
        self.found: list[tuple[str, str]] = []

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: ShardBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        found = self._check.among(batch.batch.samples)
        if found and not self.found:
            log.warning(
                f"anchor {found[0][0]!r} also occurs in the pool, as {found[0][1]!r}: such utilities are too good. The "
                "count follows when all records are scored; remove the anchors concerned from the pool and run again"
            )
        self.found += found

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found = [pair for found in of_all_ranks(self.found) for pair in found]
        if self.found and trainer.is_global_zero:
            log.warning(overlap_message(sorted(self.found), "pool"))
