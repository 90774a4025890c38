"""Asks by files: requests for a batch API (OpenAI's format, ``vllm run-batch``), and the replies that come back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, PendingError
from ostlight.selection.usage import Usage
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.protocol import one_line, optional_fields, read_answer, request_of
from ostlight_selectors.llm_judge.remote import Asking
from ostlight_selectors.llm_judge.reply import Judgement, Reply
from ostlight_selectors.llm_judge.rubric import Rubric

MOST_REQUESTS = 50_000
MOST_BYTES = 190 << 20
"""Of one file of requests; OpenAI takes 50,000 requests and 200 MB."""
REQUESTS = "requests-"


class BatchJudge:
    """Judges by replies in files; writes a request for each that is missing.

    Args:
        options: what to ask.
        rubric: of the judge.
        folder: holds the files; ``requests-RANK-N.jsonl`` are written anew by every run, all other ``*.jsonl`` are
            read.
        rank: of this process.
        usage: grows with every reply that is read.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric, folder: Path, rank: int, usage: Usage) -> None:
        self._asking, self._options, self._rubric, self._usage = Asking(options, rubric), options, rubric, usage
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"{REQUESTS}{rank:03d}-*.jsonl"):
            file.unlink()
        self._positions, self._errors = _positions(folder)
        self._fields = request_of(options) | optional_fields(options, rubric)[0]
        self._written: set[str] = set()
        self._bytes = 0
        self._number = 0

    def __len__(self) -> int:
        return len(self._positions)

    def judge(self, samples: Sequence[Sample], device: torch.device) -> list[Judgement | BadRecord]:
        """A judgement of each sample, or why it has none: ``reply_pending`` where a request was written for it."""
        return [self._judge(sample) for sample in samples]

    def refuse_pending(self) -> None:
        """Raises:
        PendingError: requests were written; says what to do with them.
        """
        if self._written:
            raise PendingError(
                f"{len(self._written):,} requests wait for replies: send {self._folder}/{REQUESTS}*.jsonl to a batch "
                f"API (vllm run-batch -i FILE -o REPLIES --model {self._options.model}, or a vendor's), put the files "
                f"of replies into {self._folder} under any other name, and run the same command again"
            )

    def _judge(self, sample: Sample) -> Judgement | BadRecord:
        try:
            return self._asking.judgement(self._asking.usable(sample, self._reply))
        except BadRecord as bad:
            return bad

    def _reply(self, messages: list[dict[str, Any]], attempt: int) -> Reply:
        key = self._asking.key(messages, attempt)
        if key not in self._positions:
            self._write(key, messages)
            raise BadRecord("reply_pending", "a request was written; there is no reply to it yet")
        path, position = self._positions[key]
        with path.open("rb") as file:
            file.seek(position)
            line = json.loads(file.readline())
        response = line.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        if line.get("error") or not isinstance(body, dict) or response.get("status_code", 200) != 200:
            raise self._failed(key, messages, f"{path.name}: {line.get('error') or response}")
        try:
            reply = read_answer(body, self._rubric, self._options.mode == "logprobs")
        except ValueError as error:
            raise self._failed(key, messages, f"{path.name}: {error}") from error
        price = self._options.price.of(reply.tokens_in, reply.tokens_out)
        self._usage.add(calls=1, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, price=price)
        return reply

    def _failed(self, key: str, messages: list[dict[str, Any]], problem: str) -> BadRecord:
        """The failure of a request, which is written again unless it has failed ``max_reasks + 1`` times."""
        if self._errors[key] > self._options.max_reasks:
            problem = f"failed {self._errors[key]} times; the last: {problem}"
        else:
            self._write(key, messages)
        return BadRecord("request_failed", one_line(problem, None))

    def _write(self, key: str, messages: list[dict[str, Any]]) -> None:
        if key in self._written:
            return
        request = {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": self._fields | {"messages": messages},
        }
        line = json.dumps(request).encode() + b"\n"
        if len(self._written) % MOST_REQUESTS == 0 or self._bytes + len(line) > MOST_BYTES:
            self._number, self._bytes = self._number + 1, 0
        self._written.add(key)
        self._bytes += len(line)
        with (self._folder / f"{REQUESTS}{self._rank:03d}-{self._number:03d}.jsonl").open("ab") as file:
            file.write(line)


def _positions(folder: Path) -> tuple[dict[str, tuple[Path, int]], Counter[str]]:
    """Where the reply to each request stands, of several the last that is not an error; and how many are errors."""
    found: dict[str, tuple[Path, int]] = {}
    errors: Counter[str] = Counter()
    good: set[str] = set()
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.startswith(REQUESTS):
            continue
        with path.open("rb") as file:
            position = 0
            for line in file:
                key, is_good = _key_of(line)
                if key is not None:
                    errors[key] += not is_good
                if key is not None and (is_good or key not in good):
                    found[key] = (path, position)
                    good |= {key} if is_good else set()
                position += len(line)
    return found, errors


def _key_of(line: bytes) -> tuple[str | None, bool]:
    """The request that a line replies to, and whether it is no error; ``None`` for a damaged line."""
    try:
        fields = json.loads(line)
        key = fields["custom_id"]
        is_good = not fields.get("error") and isinstance(fields["response"]["body"]["choices"], list)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        try:
            key, is_good = json.loads(line)["custom_id"], False
        except (ValueError, LookupError, TypeError, RecursionError):
            return None, False
    return (key, is_good) if isinstance(key, str) else (None, False)
