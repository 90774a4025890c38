"""The selector inside Lightning."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from torch.utils.data import DataLoader

from ostlight.errors import BadRecord, SelectorError
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.models.cost_estimate import Preflight, measure
from ostlight.models.flops import FlopCounter
from ostlight.models.memory import out_of_memory
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.cost_log import charge
from ostlight.pipeline.scoring.rows import Row, checked_columns, rejected_row, scored_rows
from ostlight.pipeline.scoring.stream import ShardBatch, ShardStream
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import OK
from ostlight.selection.selector import Selector

log = logging.getLogger(__name__)

MEASURED = 8
"""Samples the preflight scores."""

FEWEST_TOKENS = 64
"""The smallest batch a setup is tried with; smaller ones hardly need less memory."""

SINGLES_TRIED = 8
"""Samples that must fail alone, and none fit, before a run is given up."""


class Scoring(L.LightningModule):
    """Runs ``selector.score`` on every batch of the shards that are still missing.

    Args:
        selector: whose scores.
        context: given to its ``setup`` on every rank, the proxy in it on that rank's device.
        stream: over all shards; each rank narrows it to its own.
        proxy: moved to the device with this module; ``None`` for selectors that use none.
        workers: processes that read ahead.
        entry: of the cost log; grows by what this rank does, and at the end, on the first rank, by what the others did.
    """

    def __init__(
        self,
        selector: Selector,
        context: ScoringContext,
        stream: ShardStream,
        proxy: MultimodalModel | None,
        workers: int = 0,
        entry: StageCost | None = None,
    ) -> None:
        super().__init__()
        self.selector, self.context, self.stream = selector, context, stream
        self.proxy = proxy
        self.workers = workers
        self.preflight: Preflight | None = None
        self._most: int | None = None
        self._ready = self._fitted = False
        self._refused_alone = self._failed_together = 0
        self.entry = entry or StageCost("score")
        self._before = selector.usage.copy()
        self._flops_per_sample = 0.0

    def predict_dataloader(self) -> DataLoader[ShardBatch]:
        # One rank looks at the folder for all: it changes as soon as the first of them starts to score.
        missing = self.trainer.strategy.broadcast(self.stream.shards)
        self.stream.shards = list(missing[self.trainer.global_rank :: self.trainer.world_size])
        return DataLoader(self.stream, batch_size=None, num_workers=self.workers)

    def on_predict_start(self) -> None:
        # Ranks may have to agree in setup, so all of them go through it, also one without a batch.
        if self.trainer.world_size > 1:
            with torch.enable_grad():
                self._make_ready()

    def _set_up(self) -> None:
        """The selector's setup, again with half the tokens in a batch for as long as memory runs out.

        Raises:
            SelectorError: memory runs out with the smallest batches too.
        """
        while True:
            try:
                return self._counted_setup()
            except Exception as error:
                if not self.selector.uses_proxy or not out_of_memory(error):
                    raise
                halved = self.context.proxy.tokens_per_batch // 2
                if halved < FEWEST_TOKENS:
                    raise SelectorError(
                        f"out of memory while setting up, also with {2 * halved} tokens in a batch: {error}; take a "
                        "smaller proxy, fewer parameters, or fewer anchors"
                    ) from error
            self._lower(halved, "while setting up")

    def _counted_setup(self) -> None:
        """Anchor gradients and probes are part of a selector's price: their operations are counted in full."""
        if not self.selector.uses_proxy:
            return self.selector.setup(self.context)
        with FlopCounter() as counter:
            self.selector.setup(self.context)
        self.entry.flops += counter.total
        self.entry.more["setup_flops"] = counter.total
        return None

    def predict_step(self, batch: ShardBatch, batch_index: int) -> list[Row]:
        with torch.enable_grad(), _new_tensors_in_fp32():
            rows = self._scored(batch.batch) if len(batch.batch) else []
        self.entry.tokens += sum(batch.batch.tokens)
        self.entry.samples += len(batch.batch) + len(batch.rejections)
        self.entry.flops += self._flops_per_sample * len(batch.batch)
        return rows

    def _scored(self, batch: Batch) -> list[Row]:
        # Only now: where no record can be used, every record's reason is the answer, not what setup misses.
        self._make_ready()
        return self._rows(batch)

    def _make_ready(self) -> None:
        if self._ready:
            return
        self._set_up()
        if self.selector.uses_proxy and self.stream.shards:
            self._measure()
        self._ready = True

    def farewell(self) -> None:
        """The selector's teardown, once, where it was set up; also after a run that failed or was stopped."""
        if self._ready:
            self._ready = False
            self.selector.teardown()

    def on_predict_end(self) -> None:
        """Charges the first rank's entry with what the other ranks counted, once the selector has said farewell."""
        self.farewell()
        if self.trainer.world_size == 1:
            return
        own = dataclasses.replace(self.entry)
        charge(own, self.selector.usage.since(self._before))
        mine = torch.tensor([getattr(own, name) for name in ADDITIVE], dtype=torch.float64, device=self.device)
        whole = self.trainer.strategy.reduce(mine.clone(), reduce_op="sum")
        if self.trainer.is_global_zero:
            for name, value in zip(ADDITIVE, (whole - mine).tolist(), strict=True):
                kind = type(getattr(self.entry, name))
                setattr(self.entry, name, getattr(self.entry, name) + kind(value))

    def _rows(self, batch: Batch) -> list[Row]:
        """Rows of one batch, in smaller batches where memory ran out on this one or on an earlier one."""
        rows: list[Row] = []
        waiting = [batch]
        while waiting:
            some = waiting.pop()
            groups = [] if self._most is None else by_token_budget(_lengths(some), self._most)
            if len(groups) > 1:
                waiting += [some.rows(group) for group in groups]
                continue
            made = self._attempt(some)
            if made is None:
                self._lower(max(_lengths(some)) * len(some) // 2, f"on a batch of {len(some)} samples")
                waiting.append(some)
            else:
                rows += made
        return rows

    def _attempt(self, batch: Batch) -> list[Row] | None:
        """``None`` where memory ran out on several samples; outside the handler nothing holds that pass's tensors."""
        try:
            columns = checked_columns(self.selector.score(batch), len(batch), type(self.selector).__name__)
        except SelectorError:
            raise
        except Exception as error:
            if not out_of_memory(error):
                return self._rows_one_by_one(batch, error)
            return [self._too_large(batch, error)] if len(batch) == 1 else None
        self._fitted = True
        return scored_rows(batch, columns)

    def _too_large(self, batch: Batch, error: Exception) -> Row:
        """Raises:
        SelectorError: several samples were too large and none fitted, so their length is not the reason.
        """
        told = f"out of memory on this sample alone ({max(_lengths(batch))} tokens); lower proxy.max_length"
        self._refused_alone += 1
        if self._refused_alone == SINGLES_TRIED and not self._fitted:
            raise SelectorError(
                f"out of memory on each of {SINGLES_TRIED} samples alone, the last of {max(_lengths(batch))} tokens: "
                "take a smaller proxy, fewer parameters, or a lower rank"
            ) from error
        return rejected_row(batch.samples[0].position, batch.samples[0].id, BadRecord("out_of_memory", told))

    def _lower(self, most: int, where: str) -> None:
        """For good: what did not fit once is not tried again with every batch."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._most = max(1, most)
        if self.selector.uses_proxy:
            self.stream.tokens_per_batch = self.context.proxy.tokens_per_batch = self._most
        unit = "tokens" if self.selector.uses_proxy else "samples"
        log.info(f"out of memory {where}: from here on a batch has at most {self._most:,} {unit}, half of that")

    def _rows_one_by_one(self, batch: Batch, error: Exception) -> list[Row]:
        """Finds the samples a batch failed on. Where it is all of several, the selector itself is broken."""
        rows: list[Row] = []
        failed = 0
        for i, single in enumerate(batch.singles()):
            try:
                columns = checked_columns(self.selector.score(single), 1, type(self.selector).__name__)
                rows += scored_rows(single, columns)
            except BadRecord as bad:
                rows.append(rejected_row(batch.samples[i].position, batch.samples[i].id, bad))
            except Exception as one:
                failed += 1
                told = BadRecord("selector_error", f"{type(one).__name__}: {one}")
                rows.append(rejected_row(batch.samples[i].position, batch.samples[i].id, told))
        if all(row["state"] == OK for row in rows):
            self._tell_of_failing_together(len(batch), error)
        if failed == len(batch) and failed > 1:
            name = f"{type(self.selector).__name__}.score"
            raise SelectorError(f"{name} failed on every sample of a batch: {type(error).__name__}: {error}") from error
        return rows

    def _tell_of_failing_together(self, samples: int, error: Exception) -> None:
        """No record shows it, and every such sample was scored, and perhaps paid for, twice."""
        told = f"{type(error).__name__}: {error}"
        if self._failed_together == 0:
            log.info(
                f"{type(self.selector).__name__}.score failed on a batch of {samples} and on none of its samples "
                f"alone: {told}; such batches are scored, and paid for, twice"
            )
        self._failed_together += 1
        self.entry.more["failed_together"] = {"batches": self._failed_together, "last": told}

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
        self._flops_per_sample = self.preflight.flops / whole
        log.info(self.preflight.line(f"scoring {whole:,} samples"))

    def _silent(self, batch: Batch) -> None:
        try:
            self.selector.score(batch)
        except Exception:  # the same failure is met, and kept with its reason, when the sample's turn comes
            return

    def _encodable(self, positions: Sequence[int]) -> Batch | None:
        encoder = self.stream.encoder
        assert self.proxy is not None, "only selectors with a proxy are measured"
        assert encoder is not None, "a proxy comes with its encoder"
        samples, encoded = [], []
        for _, read in self.stream.pool.read(positions):
            try:
                if not isinstance(read, BadRecord):
                    encoded.append(encoder.encode(read))
                    samples.append(read)
            except BadRecord:
                continue
        return self.proxy.collator.batch(samples, encoded).to(self.device) if samples else None


@contextmanager
def _new_tensors_in_fp32() -> Iterator[None]:
    """Lightning's ``bf16-true`` is for weights; what a selector sums up in tensors of its own would lose digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each sample; 1 each where nothing was encoded, so that samples are counted."""
    return batch.tokens or [1] * len(batch)
