"""Options of the judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ostlight.config.schema import Dtype

BACKENDS = ("openai", "transformers")
MODES = ("auto", "reply", "logprobs")


@dataclass
class Price:
    """Money per million tokens, in any one currency."""

    input: float = 0.0
    output: float = 0.0

    def of(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass
class JudgeOptions:
    """Attributes:
    backend: ``openai`` (any server of that protocol: vLLM, SGLang, transformers serve, a vendor) or ``transformers``
        (a model loaded here, in batches).
    model: the server's name for it; a folder or hub name for ``transformers``.
    base_url: of the server, with its ``/v1``.
    api_key_env: environment variable that holds the key; ``null`` sends none.
    rubric: ``correctness``, ``yes_no``, or the path of a YAML of your own.
    mode: ``reply`` reads reason and score from JSON; ``logprobs`` asks for one word and takes the expected value of
        the scale's words by their probability; ``auto`` asks a server for JSON and takes the expected value where it
        gives probabilities, and means ``logprobs`` for ``transformers``.
    min_mass: probability the scale's words must hold together for an expected value.
    temperature, max_tokens: of a reply; ``null`` leaves them out of the request.
    extra_body: further fields of every request (``chat_template_kwargs``, ``max_completion_tokens``, ...).
    concurrency: requests under way at once, on each rank.
    timeout_s: for one try.
    max_retries: tries after the first, on 408, 409, 425, 429, 5xx, timeouts, broken connections and broken answers.
    max_reasks: times a judge is asked again after a reply that cannot be used.
    price: per million tokens.
    dtype, max_length, tokens_per_batch, trust_remote_code: of ``transformers``, as under ``proxy``.
    """

    backend: str = "openai"
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    rubric: str = "correctness"
    mode: str = "auto"
    min_mass: float = 0.5
    temperature: float | None = 0.0
    max_tokens: int | None = 512
    extra_body: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    timeout_s: float = 120.0
    max_retries: int = 6
    max_reasks: int = 2
    price: Price = field(default_factory=Price)
    dtype: Dtype = "bfloat16"
    max_length: int = 4096
    tokens_per_batch: int = 16_384
    trust_remote_code: bool = False


COMPUTE = ("base_url", "api_key_env", "concurrency", "timeout_s", "max_retries", "price", "tokens_per_batch")
"""Options that change where and how the judge is asked, but not its answers."""


def problems(options: JudgeOptions) -> Iterator[str]:
    """Describes every problem of the options."""
    where = "selector.options"
    for name, valid in (("backend", BACKENDS), ("mode", MODES)):
        if getattr(options, name) not in valid:
            yield f"{where}.{name} must be one of {', '.join(valid)}; got {getattr(options, name)!r}"
    if not options.model:
        yield f"{where}.model is missing: the server's name for the judge, or its folder for backend=transformers"
    if options.backend == "openai":
        yield from _address_problems(options.base_url, f"{where}.base_url")
    for name in ("concurrency", "timeout_s", "max_length", "tokens_per_batch", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            yield f"{where}.{name} must be above 0; got {value}"
    for name in ("max_retries", "max_reasks", "price.input", "price.output", "temperature"):
        value = getattr(options.price, name[6:]) if name.startswith("price.") else getattr(options, name)
        if value is not None and value < 0:
            yield f"{where}.{name} must be at least 0; got {value}"
    if not 0 <= options.min_mass <= 1:
        yield f"{where}.min_mass must be at least 0 and at most 1; got {options.min_mass}"


def _address_problems(address: str | None, name: str) -> Iterator[str]:
    if not address:
        yield f"{name} is missing: where the server listens (http://localhost:8000/v1)"
        return
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        yield f"{name} must be an http or https address (http://localhost:8000/v1); got {address!r}"
    elif parts.username or parts.password or parts.query:
        # The message leaves out the address, which would end up in the log.
        yield f"{name} holds a name, password or query; put the key into an environment variable (api_key_env)"
