"""Runs a selector under Lightning's ``predict``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from ostlight.errors import BadRecord, SelectorError, stop_if_useless
from ostlight.influence.shared_passes import SharedPasses
from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.models.cost_estimate import estimate_cost
from ostlight.models.encoding.limits import limits_of
from ostlight.models.flops import FlopCounter
from ostlight.models.memory import out_of_memory
from ostlight.models.read_ahead import Waited, loader
from ostlight.models.vision.cache import take_flops
from ostlight.models.vision.features import VisionFeatures
from ostlight.pipeline.cost_log import charge
from ostlight.pipeline.scoring.batch_scorer import BatchScorer
from ostlight.pipeline.scoring.rows import Row
from ostlight.pipeline.scoring.stream import ShardBatch, ShardStream
from ostlight.progress import Phase, phase
from ostlight.ranks import is_first_rank
from ostlight.selection.context import ScoringContext
from ostlight.selection.notes import UTILITY
from ostlight.selection.selector import Selector
from ostlight.training.loss_monitor import mean_loss

log = logging.getLogger(__name__)

PREFLIGHT_SAMPLES = 8
"""Samples on which the cost of scoring is measured before it starts, and anchors on which the proxy is tried."""

NOT_ALONE = (
    "out of memory while setting up; the proxy is sharded, and no rank can repeat a pass without the others: run again "
    "with less than compute.tokens_per_batch={}, fewer parameters or more devices ({})"
)

MIN_TOKENS_PER_BATCH = 64
"""The smallest batch a selector's setup is tried with; smaller ones hardly need less memory."""


class ScoringModule(L.LightningModule):
    """Runs ``selector.score`` on every batch of the shards that are still missing.

    Args:
        context: given to its ``setup`` on every rank, with the proxy on that rank's device.
        stream: over all missing shards; each rank narrows it to its own.
        cost: grows by what this rank does; at the end, on the first rank, by what the other ranks did.
        workers: processes that read ahead.
    """

    def __init__(
        self, selector: Selector, context: ScoringContext, stream: ShardStream, cost: StageCost, workers: int = 0
    ) -> None:
        super().__init__()
        self.selector, self.context, self.stream, self.cost, self.workers = selector, context, stream, cost, workers
        self.proxy = context.proxy.model if selector.uses_proxy else None  # a submodule, so Lightning moves it
        self._scorer = BatchScorer(selector, cost, self._apply_limit)
        self._waited: Waited[ShardBatch] | None = None
        self._is_set_up = False
        self._usage_before = selector.usage.copy()
        self._flops_per_token = 0.0
        self._usable, self._rejected = 0, list[BadRecord]()
        self._open, self._phase = contextlib.ExitStack(), Phase("")
        self._passes: SharedPasses | None = None

    def configure_model(self) -> None:
        """Shards the proxy where the strategy asks for it."""
        if self.proxy is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None, "the strategy makes one"
            self.proxy.shard(self.device_mesh["data_parallel"])
            self._passes = SharedPasses.of(self.proxy.model)

    def predict_dataloader(self) -> Waited[ShardBatch]:
        # The first rank lists the missing shards for all: the list changes as soon as any rank starts to score.
        missing, self.stream.retried = self.trainer.strategy.broadcast((self.stream.shards, self.stream.retried))
        self.stream.shards = list(missing[self.trainer.global_rank :: self.trainer.world_size])
        workers = min(self.workers, len(self.stream.shards))  # they divide the shards
        self._waited = Waited(loader(self.stream, workers), "score", workers)
        return self._waited

    def on_predict_start(self) -> None:
        # A setup may communicate, so all ranks run it, also one without a batch.
        if self.trainer.world_size > 1:
            with torch.enable_grad():
                self.ensure_set_up()

    def predict_step(self, batch: ShardBatch, batch_index: int) -> list[Row]:
        with torch.enable_grad(), _default_dtype_fp32():
            rows: list[Row] = []
            if len(batch.batch):  # where every record is rejected, the reasons matter, and not what setup may lack
                self.ensure_set_up()
                batch.batch.features = VisionFeatures()  # some selectors run a batch several times
                rows = self._scorer.score(batch.batch)
        self._phase.advance(len(batch.batch) + len(batch.rejections))
        self._usable += len(batch.batch)
        if not self._usable:
            self._rejected += [rejection.error for rejection in batch.rejections]
            stop_if_useless("score", self._rejected, self._usable)
        self.cost.tokens += sum(batch.batch.tokens)
        self.cost.samples += len(batch.batch) + len(batch.rejections)
        self.cost.flops += self._flops_per_token * batch.batch.padded_tokens + take_flops()
        return rows

    def on_predict_epoch_end(self) -> None:
        # Before ``on_predict_end`` of the callbacks, which communicate: others may still need this rank to score.
        self.tear_down_selector()

    def on_predict_end(self) -> None:
        if self._waited is not None:
            self.cost.more["waited_for_data"] = round(self._waited.share, 3)
        if self.trainer.world_size > 1:
            self._add_cost_of_other_ranks()

    def tear_down_selector(self) -> None:
        """Calls the selector's teardown once, if it was set up; also after a run that failed or was stopped."""
        self._open.close()
        if self._is_set_up:
            self._is_set_up = False
            self.selector.teardown()
        if self._passes is not None:
            self._passes.end()

    def end_other_ranks(self) -> None:
        """Where ranks share the proxy's weights and this one fails: tells the others, or else ends those that this
        process has started; other launchers do so themselves."""
        if self._passes is not None and not self._passes.fail():
            for process in getattr(self.trainer.strategy.launcher, "procs", []):
                process.terminate()

    def ensure_set_up(self) -> None:
        """Sets the selector up, once, and logs what scoring will cost."""
        if self._is_set_up:
            return
        if self.selector.uses_proxy and self.context.anchors and self._passes is None and is_first_rank():
            self._warn_of_guessing()
        if self.selector.scores_utility:
            self.context.note(UTILITY, True)  # before a setup that knows better
        start = time.perf_counter()
        with phase("setting up the selector"):
            self._set_up_selector()
        self.cost.more["setup_s"] = time.perf_counter() - start
        self._is_set_up = True
        if self._passes is not None:
            self._begin_shared_passes(self._passes)
        if self.selector.uses_proxy and self.stream.shards:
            self._log_expected_cost()
        self._phase = self._open.enter_context(phase("scoring", self.stream.records, "samples"))

    def _warn_of_guessing(self) -> None:
        """Warns where the proxy does worse on a few anchors than one that holds every token for equally likely."""
        model, anchors = self.context.proxy.model, self.context.anchors[:PREFLIGHT_SAMPLES]
        guessing = math.log(limits_of(model.model).vocabulary)
        try:
            loss = mean_loss(model, model.batches(anchors, self.context.proxy.tokens_per_batch))
        except Exception as error:  # the selector's setup needs them too, and says what is wrong
            log.debug(f"the loss on {len(anchors)} anchors: {error}")
            return
        if not loss <= guessing:
            log.warning(
                f"the proxy's loss on {len(anchors)} anchors is {loss:.2f} nats, no better than guessing every token "
                f"({guessing:.2f}); its scores mean little. Warm it up on more of the pool (proxy.warmup.fraction), "
                "check its chat template, or take another model"
            )

    def _begin_shared_passes(self, passes: SharedPasses) -> None:
        """From here on ranks differ in what they score. A pass of all of them on the same sample comes before."""
        for batch in () if passes.has_made_one else self.context.proxy.examples(PREFLIGHT_SAMPLES):
            try:
                with torch.no_grad():
                    self.context.proxy.model.losses(batch)
                break
            except Exception as error:  # on all ranks; it fails again, and is recorded, when it is scored
                log.debug(f"a sample on which the proxy fails: {error}")
                passes.reshard()
        passes.begin()

    def _set_up_selector(self) -> None:
        """Calls the selector's setup, again with half the tokens in a batch for as long as memory runs out.

        Raises:
            SelectorError: memory runs out with the smallest batches too.
        """
        while True:
            try:
                return self._set_up_counting_flops()
            except Exception as error:
                if not self.selector.uses_proxy or not out_of_memory(error):
                    raise
                if self._passes is not None:
                    raise SelectorError(NOT_ALONE.format(self.context.proxy.tokens_per_batch, error)) from error
                halved = self.context.proxy.tokens_per_batch // 2
                if halved < MIN_TOKENS_PER_BATCH:
                    raise SelectorError(
                        f"out of memory while setting up, also with {2 * halved} tokens in a batch: {error}; take a "
                        "smaller proxy, fewer parameters or fewer anchors"
                    ) from error
            self._scorer.limit_batches(halved, "while setting up")

    def _set_up_counting_flops(self) -> None:
        """Anchor gradients and curvature are part of what a selector costs."""
        if not self.selector.uses_proxy:
            return self.selector.setup(self.context)
        with FlopCounter() as counter:
            self.selector.setup(self.context)
        flops = counter.total + take_flops()
        self.cost.flops += flops
        self.cost.more["setup_flops"] = flops
        return None

    def _apply_limit(self, limit: int) -> None:
        if self.selector.uses_proxy:
            self.stream.tokens_per_batch = self.context.proxy.tokens_per_batch = limit

    def _add_cost_of_other_ranks(self) -> None:
        """Adds to the first rank's cost what the other ranks counted. Its own usage is charged by the cost log."""
        own_cost = dataclasses.replace(self.cost)
        charge(own_cost, self.selector.usage.since(self._usage_before))
        own = torch.tensor([getattr(own_cost, n) for n in ADDITIVE], dtype=torch.float64, device=self.device)
        all_ranks = self.trainer.strategy.reduce(own.clone(), reduce_op="sum")
        if self.trainer.is_global_zero:
            for name, value in zip(ADDITIVE, (all_ranks - own).tolist(), strict=True):
                number = type(getattr(self.cost, name))
                setattr(self.cost, name, getattr(self.cost, name) + number(value))

    def _log_expected_cost(self) -> None:
        """Scores a few samples from all over the pool and logs what the whole will cost."""
        records = len(self.stream.pool)
        positions = range(0, records, max(1, records // PREFLIGHT_SAMPLES))[:PREFLIGHT_SAMPLES]
        batch = self.stream.batch(positions).to(self.device)
        if not len(batch):
            return
        all_ranks = min(records, self.stream.records * self.trainer.world_size)

        def score() -> None:
            batch.features = VisionFeatures()
            with contextlib.suppress(Exception):  # it fails again, and is recorded, when the sample is scored
                self.selector.score(batch)

        size, per_rank = len(batch), self.stream.records / len(batch)
        flops, line = estimate_cost(f"scoring {all_ranks:,} samples", score, size, all_ranks / size, per_rank)
        self._flops_per_token = flops * size / all_ranks / batch.padded_tokens
        log.info(line)


@contextmanager
def _default_dtype_fp32() -> Iterator[None]:
    """Lightning's ``bf16-true`` is for weights; a selector's own sums would lose digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
