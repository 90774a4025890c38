"""Client of a server with the OpenAI protocol."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

from ostlight.errors import BadRecord, SelectorError
from ostlight.selection.usage import Usage
from ostlight_selectors.llm_judge.http_limits import bounded_client
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.protocol import one_line, optional_fields, read_answer, request_of
from ostlight_selectors.llm_judge.reply import Reply
from ostlight_selectors.llm_judge.rubric import Rubric

log = logging.getLogger("ostlight.selectors.llm_judge")

TEMPORARY_STATUSES = (408, 409, 429)
"""Of those below 500; the ``openai`` client repeats such requests."""
MAX_FAILURES_IN_A_ROW = 16
"""After this many failed requests in a row the run stops."""
MAX_ANSWER_BYTES = 1 << 24
"""Longest answer that is read: 4,096 tokens with twenty log-probabilities each take 6 MB."""


class Server:
    """A judge on a server.

    The ``openai`` client repeats what broke off, timed out or was refused for the moment. An answer that does not
    follow the protocol (half a body, an error with status 200) is asked for again here.

    Args:
        options: address, model, sampling, retries, price.
        key: sent with every request, ``None`` for a server that takes none; removed from all that the server returns.
        rubric: its scale decides the reply's schema and which log-probabilities are kept.
        usage: grows with every request that was answered.

    Attributes:
        answered: whether a request was.
        reached: whether one was answered, or refused for what it asks.

    Raises:
        SelectorError: the ``openai`` package is missing.
    """

    def __init__(self, options: JudgeOptions, key: str | None, rubric: Rubric, usage: Usage) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise SelectorError(
                "llm_judge with backend=openai needs a package: pip install 'ostlight[judge]'"
            ) from error
        assert options.base_url is not None, "checked with the options"
        self._openai, self.base_url, self._key = openai, options.base_url, key
        # The client would fall back on OPENAI_API_KEY, and carry it to an address it was not meant for.
        self._client = openai.OpenAI(
            base_url=options.base_url,
            api_key=key or "none",
            timeout=options.timeout_s,
            max_retries=options.max_retries,
            default_headers={"Accept-Encoding": "identity"},
            http_client=bounded_client(openai, options.timeout_s, MAX_ANSWER_BYTES),
        )
        weakref.finalize(self, self._client.close)
        self._options, self._rubric, self._usage = options, rubric, usage
        self._one_word = options.mode == "logprobs"
        self._variants = optional_fields(options, rubric)
        self._variant_chosen = False
        self.answered = self.reached = False
        self._failures_in_a_row = 0
        self._problem: str | None = None
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, Any]]) -> Reply:
        """The reply to a conversation.

        Raises:
            BadRecord: ``request_failed``: refused, or given up after all retries.
            SelectorError: no request can succeed: the key, the address or the model is wrong, or the server is out.
        """
        body = request_of(self._options) | {"messages": messages}
        refusal: BadRecord | None = None
        for extra in list(self._variants):
            try:
                answer = self._send(body | extra)
            except _Refused as error:
                refusal = refusal or BadRecord("request_failed", str(error))
                continue
            self._keep_variant(extra)
            return answer
        assert refusal is not None, "there is at least one variant"
        raise refusal

    def _keep_variant(self, extra: dict[str, Any]) -> None:
        """Uses the fields of the first answered request from now on; logs once what the server rejected."""
        with self._lock:
            if self._variant_chosen:
                return
            self._variant_chosen = True
            best, self._variants = self._variants[0], [extra]
        effects = {"response_format": "JSON is read from free text", "logprobs": "scores are as written"}
        for name, effect in effects.items():
            if name in best and name not in extra:
                log.warning(f"{self.base_url} refuses {name}: {effect}")

    def _send(self, body: dict[str, Any]) -> Reply:
        if self._problem is not None:
            raise SelectorError(self._problem)
        for _ in range(self._options.max_retries + 1):
            try:
                # `post` skips the client's models of an answer, a third of the time, and reads unusual servers too.
                answer = self._client.post("/chat/completions", cast_to=object, body=body)
                reply = read_answer(answer, self._rubric, self._one_word, self._key)
            except self._openai.APIStatusError as error:
                return self._give_up(self._status_error(error))
            except self._openai.APIConnectionError as error:
                return self._give_up(self.clean(f"{type(error).__name__}: {error} {error.__cause__ or ''}"))
            except (ValueError, RecursionError, self._openai.APIError) as error:
                message = self.clean(f"the server's answer does not follow the protocol: {error}")
                self._usage.add(calls=1)
            else:
                price = self._options.price.of(reply.tokens_in, reply.tokens_out)
                self._usage.add(calls=1, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, price=price)
                self.answered = self.reached = True
                self._failures_in_a_row = 0
                return reply
        return self._give_up(message)

    def _give_up(self, message: str) -> Reply:
        with self._lock:
            self._failures_in_a_row += 1
            failures = self._failures_in_a_row
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise self._unusable(
                f"{self.base_url} does not answer: {failures} requests in a row were given up, the last with "
                f"{message}. Earlier replies are stored; run the same command again when the server is back"
            )
        raise BadRecord("request_failed", f"given up after {self._options.max_retries + 1} tries; the last: {message}")

    def _status_error(self, error: Any) -> str:
        """The message of a temporary error.

        Raises:
            _Refused: the server refuses this request.
            SelectorError: it will refuse every request.
        """
        status, message = error.status_code, f"status {error.status_code}: {self.clean(str(error.message))}"
        fixes = {
            401: "set the key's variable and name it in selector.options.api_key_env",
            402: "the account is exhausted",
            403: "the key may not use this model",
            404: "check selector.options.base_url (it ends in /v1 for most servers) and model",
        }
        exhausted = status == 429 and "insufficient_quota" in message
        if exhausted or status in (401, 402) or (status in fixes and not self.answered):
            fix = fixes.get(status, fixes[402])
            raise self._unusable(f"{self.base_url} refuses every request, {message}; {fix}") from None
        if status >= 500 or status in TEMPORARY_STATUSES:
            return message
        self.reached = True
        raise _Refused(message) from None

    def _unusable(self, problem: str) -> SelectorError:
        """The error of a server that can answer no request; other threads send none after it."""
        self._problem = problem
        return SelectorError(problem)

    def clean(self, text: str) -> str:
        """The text as it may be reported: without the key, on one line, cut."""
        return one_line(text, self._key)


class _Refused(Exception):
    """The server rejects this request; repeating it is useless."""
