"""Scores one batch at a time, and recovers where a batch fails or does not fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ostlight.errors import BadRecord, RankFailedError, SelectorError
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.cost import StageCost
from ostlight.models.memory import out_of_memory
from ostlight.pipeline.scoring.rows import Row, checked_columns, rejected_row, scored_rows
from ostlight.selection.scores import OK
from ostlight.selection.selector import Selector

log = logging.getLogger(__name__)

MAX_OVERSIZED = 8
"""Samples that run out of memory alone, before any batch fitted, after which scoring is given up."""


class BatchScorer:
    """Turns batches into rows of the score table.

    Where memory runs out, batches are halved, and stay that small. Where a batch fails otherwise, its samples are
    scored one by one and those that fail alone are rejected.

    Args:
        cost: gets ``more["failed_together"]`` where batches fail that their samples alone do not.
        on_limit: called with the new limit each time batches get smaller.
    """

    def __init__(self, selector: Selector, cost: StageCost, on_limit: Callable[[int], None]) -> None:
        self._selector, self._cost, self._on_limit = selector, cost, on_limit
        self._name = type(selector).__name__
        self._limit: int | None = None
        self._any_fitted = False
        self._oversized = self._failed_together = 0

    def score(self, batch: Batch) -> list[Row]:
        """Returns one row for every sample of the batch.

        Raises:
            SelectorError: the selector breaks its contract, fails on every sample, or nothing fits into memory.
            RankFailedError: of ranks that share the proxy's weights, one has failed.
        """
        rows: list[Row] = []
        pending = [batch]
        while pending:
            part = pending.pop()
            groups = [] if self._limit is None else by_token_budget(_lengths(part), self._limit)
            if len(groups) > 1:
                pending += [part.rows(group) for group in groups]
                continue
            part_rows = self._try(part)
            if part_rows is None:
                self.limit_batches(max(_lengths(part)) * len(part) // 2, f"on a batch of {len(part)} samples")
                pending.append(part)
            else:
                rows += part_rows
        return rows

    def limit_batches(self, limit: int, when: str) -> None:
        """Allows at most ``limit`` padded tokens a batch (samples, without a proxy) from here on."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limit = max(1, limit)
        self._on_limit(self._limit)
        unit = "tokens" if self._selector.uses_proxy else "samples"
        log.info(f"out of memory {when}: from here on a batch has at most {self._limit:,} {unit}, half of that")

    def _try(self, batch: Batch) -> list[Row] | None:
        """Returns the rows, or ``None`` where memory ran out on several samples.

        The retry happens in the caller: inside the exception handler the failed pass's tensors are still alive.
        """
        try:
            columns = checked_columns(self._selector.score(batch), len(batch), self._name)
        except (SelectorError, RankFailedError):
            raise
        except Exception as error:
            if not out_of_memory(error):
                return self._score_one_by_one(batch, error)
            return [self._reject_oversized(batch, error)] if len(batch) == 1 else None
        self._any_fitted = True
        return scored_rows(batch, columns)

    def _reject_oversized(self, batch: Batch, error: Exception) -> Row:
        tokens = max(_lengths(batch))
        self._oversized += 1
        if self._oversized == MAX_OVERSIZED and not self._any_fitted:
            raise SelectorError(
                f"out of memory on each of {MAX_OVERSIZED} samples alone, the last of {tokens} tokens: "
                "take a smaller proxy, fewer parameters or a lower rank"
            ) from error
        detail = f"out of memory on this sample alone ({tokens} tokens); lower proxy.max_length"
        return rejected_row(batch.samples[0].position, batch.samples[0].id, BadRecord("out_of_memory", detail))

    def _score_one_by_one(self, batch: Batch, error: Exception) -> list[Row]:
        """Returns the rows of a batch that failed, with the samples rejected that fail alone.

        Raises:
            SelectorError: every one of several samples fails, and none was scored before, so the selector itself does
                not work.
        """
        rows: list[Row] = []
        failures = 0
        for single in batch.singles():
            sample = single.samples[0]
            try:
                columns = checked_columns(self._selector.score(single), 1, self._name)
                rows += scored_rows(single, columns)
            except RankFailedError:
                raise
            except BadRecord as bad:
                rows.append(rejected_row(sample.position, sample.id, bad))
            except Exception as own_error:
                failures += 1
                reason = BadRecord("selector_error", f"{type(own_error).__name__}: {own_error}")
                rows.append(rejected_row(sample.position, sample.id, reason))
        self._any_fitted |= any(row["state"] == OK for row in rows)
        if failures == len(batch) and failures > 1 and not self._any_fitted:
            raise SelectorError(
                f"{self._name}.score failed on every sample of a batch: {type(error).__name__}: {error}"
            ) from error
        if all(row["state"] == OK for row in rows):
            self._report_batch_failure(len(batch), error)
        return rows

    def _report_batch_failure(self, samples: int, error: Exception) -> None:
        """No row shows such a failure, and every sample of the batch was scored, and perhaps paid for, twice."""
        message = f"{type(error).__name__}: {error}"
        if self._failed_together == 0:
            log.warning(
                f"{self._name}.score failed on a batch of {samples} and on none of its samples alone: {message}; "
                "such batches are scored, and paid for, twice"
            )
        self._failed_together += 1
        self._cost.more["failed_together"] = {"batches": self._failed_together, "last": message}


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each sample; 1 each where nothing was encoded, so that samples are counted."""
    return batch.tokens or [1] * len(batch)
