"""The selector inside Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader

from ostlight.errors import BadRecord, SelectorError
from ostlight.model.batch import Batch
from ostlight.model.module import MultimodalModel
from ostlight.run.preflight import Preflight, measure
from ostlight.scoring.rows import Row, checked_columns, refused_row, scored_rows
from ostlight.scoring.stream import ShardBatch, ShardStream
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting

MEASURED = 8
"""Samples the preflight scores."""


class Scoring(L.LightningModule):
    """Runs ``selector.score`` on every batch of the shards that are still missing.

    Args:
        selector: whose scores.
        setting: given to its ``setup`` on every rank, the proxy in it on that rank's device.
        stream: over all shards; each rank narrows it to its own.
        proxy: moved to the device with this module; ``None`` for selectors that use none.
        workers: processes that read ahead.
    """

    def __init__(
        self,
        selector: Selector,
        setting: Setting,
        stream: ShardStream,
        proxy: MultimodalModel | None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.selector, self.setting, self.stream = selector, setting, stream
        self.proxy = proxy
        self.workers = workers
        self.preflight: Preflight | None = None
        self.tokens = 0
        self.samples = 0

    def predict_dataloader(self) -> DataLoader[ShardBatch]:
        # One rank looks at the folder for all: it changes as soon as the first of them starts to score.
        missing = self.trainer.strategy.broadcast(self.stream.shards)
        self.stream.shards = list(missing[self.trainer.global_rank :: self.trainer.world_size])
        return DataLoader(self.stream, batch_size=None, num_workers=self.workers)

    def on_predict_start(self) -> None:
        with torch.enable_grad():
            self.selector.setup(self.setting)
            if self.selector.uses_proxy and self.stream.shards:
                self._measure()

    def predict_step(self, batch: ShardBatch, batch_index: int) -> list[Row]:
        with torch.enable_grad():
            rows = self._rows(batch.batch) if len(batch.batch) else []
        self.tokens += sum(batch.batch.tokens)
        self.samples += len(batch.batch) + len(batch.refusals)
        return rows

    def _rows(self, batch: Batch) -> list[Row]:
        name = type(self.selector).__name__
        try:
            columns = checked_columns(self.selector.score(batch), len(batch), name)
        except SelectorError:
            raise
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise SelectorError(
                    f"out of memory on a single sample of {batch.tokens[0]} tokens; lower proxy.max_length"
                ) from error
            self.setting.say(f"out of memory on {len(batch)} samples; this batch is split in two")
            torch.cuda.empty_cache()
            half = len(batch) // 2
            return self._rows(batch.rows(range(half))) + self._rows(batch.rows(range(half, len(batch))))
        except Exception as error:
            return self._rows_one_by_one(batch, error)
        return scored_rows(batch, columns)

    def _rows_one_by_one(self, batch: Batch, error: Exception) -> list[Row]:
        """Finds the samples a batch failed on. Where it is all of several, the selector itself is broken."""
        rows: list[Row] = []
        failed = 0
        for i, single in enumerate(batch.singles()):
            try:
                columns = checked_columns(self.selector.score(single), 1, type(self.selector).__name__)
                rows += scored_rows(single, columns)
            except BadRecord as bad:
                rows.append(refused_row(batch.samples[i].position, batch.samples[i].id, bad))
            except Exception as one:
                failed += 1
                told = BadRecord("selector_error", f"{type(one).__name__}: {one}")
                rows.append(refused_row(batch.samples[i].position, batch.samples[i].id, told))
        if failed == len(batch) and failed > 1:
            name = f"{type(self.selector).__name__}.score"
            raise SelectorError(f"{name} failed on every sample of a batch: {type(error).__name__}: {error}") from error
        return rows

    def _measure(self) -> None:
        """Scores a few samples from all over the pool, and says what the whole will cost."""
        records = len(self.stream.pool)
        wanted = range(0, records, max(1, records // MEASURED))[:MEASURED]
        batch = self._encodable(wanted)
        if batch is None:
            return
        # What this rank has before it, and what all have.
        mine = min(records, len(self.stream.shards) * self.stream.shard_size)
        whole = min(records, mine * self.trainer.world_size)
        self.preflight = measure(lambda: self._silent(batch), len(batch), whole / len(batch), mine / len(batch))
        self.setting.say(self.preflight.line(f"scoring {whole:,} samples"))

    def _silent(self, batch: Batch) -> None:
        try:
            self.selector.score(batch)
        except Exception:  # the same failure is met, and kept with its reason, when the sample's turn comes
            return

    def _encodable(self, positions: Sequence[int]) -> Batch | None:
        assert self.proxy is not None, "only selectors with a proxy are measured"
        samples, encoded = [], []
        for _, read in self.stream.pool.read(positions):
            try:
                if not isinstance(read, BadRecord):
                    encoded.append(self.proxy.encoder.encode(read))
                    samples.append(read)
            except BadRecord:
                continue
        return self.proxy.collator.batch(samples, encoded).to(self.device) if samples else None
