"""LLM as a judge: a model reads question, images and answer, and scores the answer against a written rubric."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ostlight.errors import BadRecord, ConfigError, SelectorError
from ostlight.models.batch import Batch
from ostlight.pipeline import fingerprint
from ostlight.ranks import cluster_process
from ostlight.redact import remember_key
from ostlight.selection.context import ScoringContext
from ostlight.selection.selector import Selector
from ostlight_selectors.llm_judge.batch_files import BatchJudge
from ostlight_selectors.llm_judge.local import LocalJudge
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.remote import RemoteJudge
from ostlight_selectors.llm_judge.reply import Judgement
from ostlight_selectors.llm_judge.reply_store import ReplyStore
from ostlight_selectors.llm_judge.rubric import Rubric
from ostlight_selectors.llm_judge.server import Server

log = logging.getLogger("ostlight.selectors.llm_judge")

JUDGE_FAILURES = ("request_failed", "reply_unparsable", "reply_refused", "no_logprobs")
BATCH = "batch"
"""Folder of requests and replies below the selector's own."""
MIN_FAILURES = 8
"""The run stops if the judge fails on this many records and has judged none."""


class LLMJudge(Selector):
    """A large model scores each answer against a written rubric (with a threshold: rejection sampling)."""

    Options = JudgeOptions  # type: ignore[assignment]
    compute_options = (
        "base_url",
        "api_key_env",
        "concurrency",
        "timeout_s",
        "max_retries",
        "price",
        "tokens_per_batch",
    )

    retried_reasons = (*JUDGE_FAILURES, "reply_pending")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.rubric = Rubric.read(self.options.rubric)
        if self.options.mode == "logprobs" and not self.rubric.has_distinct_first_tokens:
            raise ConfigError(
                ["selector.options.mode=logprobs needs a scale in which no word is the start of another (as 1 of 10)"]
            )
        self._judge: LocalJudge | RemoteJudge | BatchJudge | None = None
        self._useful, self._has_replied, self._failures = False, False, 0

    def fingerprints(self) -> dict[str, str]:
        fingerprints = {"rubric": fingerprint.of_values(dataclasses.asdict(self.rubric))}
        if self.options.backend == "transformers":
            fingerprints["model"] = fingerprint.of_model(self.options.model, "selector.options.model")
        return fingerprints

    def setup(self, context: ScoringContext) -> None:
        options = self.options
        if options.backend == "transformers":
            self._judge = LocalJudge(options, self.rubric, self.usage)
            log.info(f"judge: {options.model}, rubric {options.rubric}")
            return
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else cluster_process()
        if options.backend == "batch":
            self._judge = BatchJudge(options, self.rubric, context.folder / BATCH, rank, self.usage)
            self._has_replied = len(self._judge) > 0
            log.info(
                f"judge: {options.model}, mode {options.mode}, rubric {options.rubric}; {len(self._judge):,} replies "
                f"are in {context.folder / BATCH}"
            )
            return
        replies = ReplyStore(context.folder, rank)
        self._has_replied = len(replies) > 0
        server = Server(options, self._key(), self.rubric, self.usage)
        self._judge = RemoteJudge(options, self.rubric, server, replies)
        log.info(
            f"judge: {options.model} at {options.base_url}, {options.concurrency} at once, mode {options.mode}, "
            f"rubric {options.rubric}; {len(replies):,} replies are stored already"
        )

    def score(self, batch: Batch) -> Mapping[str, Any]:
        assert self._judge is not None, "setup comes first"
        outcomes = self._judge.judge(batch.samples, batch.labels.device)
        self._stop_if_useless(outcomes)
        good = [o if isinstance(o, Judgement) else None for o in outcomes]
        return {
            "score": [g.score if g else float("nan") for g in good],
            "failure": [o if isinstance(o, BadRecord) else None for o in outcomes],
            "judge_reason": [g.reason if g else None for g in good],
            "judge_reply": [g.text if g else None for g in good],
            "judge_mode": [g.mode if g else None for g in good],
            "judge_mass": [g.mass if g else None for g in good],
            "judge_probabilities": [g.probabilities if g else None for g in good],
        }

    def teardown(self) -> None:
        """Raises:
        PendingError: requests were written and wait for replies (``backend: batch``).
        """
        if isinstance(self._judge, BatchJudge):
            self._judge.refuse_pending()

    def _stop_if_useless(self, outcomes: Sequence[Judgement | BadRecord]) -> None:
        """Stops a run whose judge fails on all first records, before the whole pool has been paid for.

        A request that the server refuses says something of its record alone, until there are ``MIN_FAILURES``.

        Raises:
            SelectorError: no judgement so far, and the judge failed on every record of this batch.
        """
        failed = [o for o in outcomes if isinstance(o, BadRecord) and o.reason in JUDGE_FAILURES]
        self._useful = self._useful or any(isinstance(o, Judgement) for o in outcomes)
        self._failures += len(failed)
        no_reply = all(o.reason == "request_failed" for o in failed)
        if no_reply and self._has_replied:  # in an earlier run: what is asked again may be what it always refuses
            return
        silent = no_reply and not (isinstance(self._judge, RemoteJudge) and self._judge.server.reached)
        if failed and len(failed) == len(outcomes) and not self._useful and (silent or self._failures >= MIN_FAILURES):
            raise SelectorError(
                f"the judge {self.options.model} gave no judgement on any of the first {self._failures} records; "
                f"the first: {failed[0]}"
            )

    def _key(self) -> str | None:
        name = self.options.api_key_env
        key = os.environ.get(name or "", "").strip()
        if name:
            remember_key(name)
        if name and not key:
            raise SelectorError(
                f"selector.options.api_key_env names {name}, which is not set in the environment; export it, or leave "
                "the option out for a server that takes no key"
            )
        return key or None
