"""Options of the judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Ge

from ostlight.config.schema import Count, Dtype, NotNegative, Positive, Share


@dataclass
class Price:
    """Money per million tokens, in any one currency."""

    input: NotNegative = 0.0
    output: NotNegative = 0.0

    def of(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass
class JudgeOptions:
    """How the judge is reached, asked and read.

    Attributes:
        backend: ``openai`` (any server of that protocol: vLLM, SGLang, transformers serve, a vendor), ``batch`` (files
            of requests and replies for a batch API) or ``transformers`` (a model loaded in this process).
        model: the server's name for it; a folder or hub name for ``transformers``.
        base_url: of the server, with its ``/v1``.
        api_key_env: environment variable that holds the key; ``null`` sends none.
        rubric: ``correctness``, ``yes_no``, or the path of a YAML of your own.
        mode: ``reply`` reads reason and score from JSON; ``logprobs`` asks for one word and takes the expected value
            of the scale's words by their probability; ``auto`` asks a server for JSON and takes the expected value
            where it gives probabilities. ``transformers`` has ``logprobs`` alone.
        min_mass: probability the scale's words must hold together for an expected value.
        temperature, max_tokens: of a reply; ``null`` leaves them out of the request.
        extra_body: further fields of every request (``chat_template_kwargs``, ``max_completion_tokens``, ...), in place
            of those of that name; ``null`` leaves one out (``response_format``, ``logprobs``).
        concurrency: requests under way at once, on each rank.
        timeout_s: for one try, from the request to the last byte of the reply.
        max_retries: tries after the first, on 408, 409, 429, 5xx, timeouts, broken connections and answers.
        max_reasks: times a server is asked again after a reply that cannot be used; a batch also after an error.
        price: per million tokens.
        dtype, max_length, tokens_per_batch, trust_remote_code: of ``transformers``, as under ``proxy``.
    """

    backend: Literal["openai", "batch", "transformers"] = "openai"
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    rubric: str = "correctness"
    mode: Literal["auto", "reply", "logprobs"] = "auto"
    min_mass: Share = 0.5
    temperature: NotNegative | None = 0.0
    max_tokens: Count | None = 512
    extra_body: dict[str, Any] = field(default_factory=dict)
    concurrency: Count = 32
    timeout_s: Positive = 120.0
    max_retries: Annotated[int, Ge(0)] = 6
    max_reasks: Annotated[int, Ge(0)] = 2
    price: Price = field(default_factory=Price)
    dtype: Dtype = "bfloat16"
    max_length: Count = 4096
    tokens_per_batch: Count = 16_384
    trust_remote_code: bool = False

    def problems(self) -> Iterator[str]:
        """A missing model, and an address that is missing, malformed or holds a secret."""
        if not self.model:
            yield "model is missing: the server's name for the judge, or its folder for backend=transformers"
        if self.backend == "transformers" and self.mode == "reply":
            yield "mode=reply needs backend=openai or batch; serve the model to get replies in JSON"
        if self.backend != "openai":
            return
        parts = urlsplit(self.base_url or "")
        if not self.base_url:
            yield "base_url is missing: where the server listens (http://localhost:8000/v1)"
        elif parts.scheme not in ("http", "https") or not parts.netloc:
            yield f"base_url must be an http or https address (http://localhost:8000/v1); got {self.base_url!r}"
        elif parts.username or parts.password or parts.query or parts.fragment:
            # The message leaves out the address, which would end up in the log.
            yield (
                "base_url holds a name, password, query or fragment; put the key into an environment variable "
                "(api_key_env)"
            )
