"""A judge on a server: asks about many samples at once, asks again after unusable replies, stores the usable ones."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, OstlightError
from ostlight_selectors.llm_judge.images import messages_of
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.protocol import request_of
from ostlight_selectors.llm_judge.reply import Judgement, Reply, judgement
from ostlight_selectors.llm_judge.reply_store import ReplyStore
from ostlight_selectors.llm_judge.rubric import Rubric
from ostlight_selectors.llm_judge.server import Server

PREPARED_AHEAD = 8
"""Samples prepared (images decoded, messages written) while others wait for the server."""
RETRIED_REPLIES = ("reply_unparsable", "reply_refused")


class Asking:
    """What a sample is asked about, and how its replies are read.

    Args:
        options: how to ask.
        rubric: of the judge.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric) -> None:
        self.options, self.rubric = options, rubric

    def judgement(self, reply: Reply) -> Judgement:
        """As ``reply.judgement``, in the mode and with the mass of the options."""
        return judgement(reply, self.rubric, self.options.mode, self.options.min_mass)

    def messages(self, sample: Sample, unusable: tuple[str, str] | None = None) -> list[dict[str, Any]]:
        """The conversation about a sample; ``unusable`` is the last reply and what is wrong with it."""
        one_word = self.options.mode == "logprobs"
        return messages_of(self.rubric.conversation(sample, one_word=one_word, unusable=unusable))

    def key(self, messages: list[dict[str, Any]], attempt: int = 0) -> str:
        """A hash of all that the reply depends on."""
        asked = json.dumps([request_of(self.options), self.options.mode, messages, attempt])
        return hashlib.sha256(asked.encode()).hexdigest()[:32]

    def usable(self, sample: Sample, ask: Callable[[list[dict[str, Any]], int], Reply]) -> Reply:
        """The first of the replies that has a score in it, ``max_reasks + 1`` of them at most.

        Args:
            sample: to judge.
            ask: sends a conversation, the number of the attempt beside it.

        Raises:
            BadRecord: what is wrong with the last reply, or why there is none.
        """
        unusable: tuple[str, str] | None = None
        for attempt in range(self.options.max_reasks + 1):
            reply = ask(self.messages(sample, unusable), attempt)
            try:
                self.judgement(reply)
            except BadRecord as bad:
                if bad.reason not in RETRIED_REPLIES or attempt == self.options.max_reasks:
                    raise
                unusable = (reply.text, bad.detail.split("; the reply was: ")[0])
                unusable = None if bad.reason == "reply_refused" else unusable
            else:
                return reply
        raise AssertionError("the last attempt returns or raises")


class RemoteJudge:
    """Judges by asking a server, ``options.concurrency`` samples at a time.

    Args:
        options: how to ask.
        rubric: of the judge.
        server: to ask.
        replies: stored so far.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric, server: Server, replies: ReplyStore) -> None:
        self.options, self.server, self.replies = options, server, replies
        self._asking = Asking(options, rubric)
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

    def _judge(self, sample: Sample) -> Judgement | BadRecord:
        try:
            first = self._asking.messages(sample)
            # A slot is free again once the reply is on disk: a kill loses no more replies than were asked for at once.
            with self._slots:
                reply = self.replies.get(self._asking.key(first), lambda: self._ask(sample))
            return self._asking.judgement(reply)
        except BadRecord as bad:
            return bad
        except OstlightError:
            raise
        except Exception as error:  # of this record alone: the others are judged
            return BadRecord("request_failed", f"{type(error).__name__}: {self.server.clean(str(error))}")

    def _ask(self, sample: Sample) -> Reply:
        return self._asking.usable(sample, lambda messages, attempt: self.server.ask(messages))
