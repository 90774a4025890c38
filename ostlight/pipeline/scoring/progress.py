"""A progress bar that counts samples instead of batches, which differ in size."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from ostlight.pipeline.scoring.stream import ShardBatch


class SampleProgress(RichProgressBar):
    """Shows the rate and the time left in samples."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples, self._done = samples, 0

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.is_enabled and self.predict_progress_bar_id is None:
            self.predict_progress_bar_id = self._add_task(self._samples, "Scoring (samples)")
            self.refresh()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: ShardBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._done += len(batch.batch) + len(batch.rejections)
        if self.is_enabled and self.predict_progress_bar_id is not None:
            self._update(self.predict_progress_bar_id, self._done)
