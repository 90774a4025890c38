"""A judge on a server: asks about many samples at once, stores every reply, asks again after unusable ones."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight_selectors.llm_judge.images import messages_of
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.reply import Judgement, Reply, judgement
from ostlight_selectors.llm_judge.reply_store import ReplyStore
from ostlight_selectors.llm_judge.rubric import Rubric
from ostlight_selectors.llm_judge.server import Server, request_of

PREPARED_AHEAD = 8
"""Samples prepared (images decoded, messages written) while others wait for the server."""
RETRIED_REPLIES = ("reply_unparsable", "reply_refused")


class RemoteJudge:
    """Judges by asking a server, ``options.concurrency`` samples at a time.

    Args:
        options: how to ask.
        rubric: of the judge.
        server: to ask.
        replies: stored so far.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric, server: Server, replies: ReplyStore) -> None:
        self.options, self.rubric, self.server, self.replies = options, rubric, server, replies
        self._slots = threading.BoundedSemaphore(options.concurrency)
        self._threads = ThreadPoolExecutor(options.concurrency + PREPARED_AHEAD, thread_name_prefix="judge")

    def judge(self, samples: Sequence[Sample], device: torch.device) -> list[Judgement | BadRecord]:
        """A judgement of each sample, or why it has none.

        Raises:
            SelectorError: the server does not answer; earlier replies are stored.
        """
        asked = [self._threads.submit(self._judge, sample) for sample in samples]
        try:
            return [future.result() for future in asked]
        except BaseException:
            self._threads.shutdown(wait=True, cancel_futures=True)
            raise

    def _reply(self, key: str, messages: list[dict[str, Any]]) -> Reply:
        # A slot is free again once the reply is on disk: a kill loses no more replies than were asked for at once.
        with self._slots:
            return self.replies.get(key, lambda: self.server.ask(messages))

    def _judge(self, sample: Sample) -> Judgement | BadRecord:
        unusable: tuple[str, str] | None = None
        failure: BadRecord | None = None
        for attempt in range(self.options.max_reasks + 1):
            try:
                one_word = self.options.mode == "logprobs"
                messages = messages_of(self.rubric.conversation(sample, one_word=one_word, unusable=unusable))
                asked = json.dumps([request_of(self.options), self.options.mode, messages, attempt])
                key = hashlib.sha256(asked.encode()).hexdigest()[:32]
                reply = self._reply(key, messages)
                return judgement(reply, self.rubric, self.options.mode, self.options.min_mass)
            except BadRecord as bad:
                failure = bad
                if bad.reason not in RETRIED_REPLIES:
                    break
                if bad.reason == "reply_unparsable":
                    unusable = (reply.text, bad.detail.split("; the reply was: ")[0])
        assert failure is not None, "the loop ends with a judgement or a failure"
        return failure
