"""Requests and answers of the OpenAI protocol, as a judge needs them."""

from __future__ import annotations

import math
from typing import Any

from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.reply import ROUNDING, Reply, bare, schema, score_place, word_logprobs
from ostlight_selectors.llm_judge.rubric import Rubric

ONE_WORD = 4
"""Token limit of a one-word reply: some models begin with a blank."""
MOST_TOKENS = 10**9
"""Most tokens that one request is believed to have cost."""
LEAST_LOGPROB = -1e9
MAX_ERROR_CHARACTERS = 500
"""Characters of a server's error message that are reported."""


def request_of(options: JudgeOptions) -> dict[str, Any]:
    """The fields of every request, without the messages; ``extra_body`` overrides, and a ``null`` in it leaves a field
    out."""
    limit = options.max_tokens
    if limit is not None and options.mode == "logprobs":
        limit = min(limit, ONE_WORD)
    named = {"model": options.model, "temperature": options.temperature, "max_tokens": limit}
    return {k: v for k, v in (named | options.extra_body).items() if v is not None}


def optional_fields(options: JudgeOptions, rubric: Rubric) -> list[dict[str, Any]]:
    """Further fields of a request, best first: a server may refuse JSON schemas or log-probabilities."""
    one_word = options.mode == "logprobs"
    json_schema = {"name": "judgement", "strict": True, "schema": schema(rubric)}
    formats = [] if one_word else [{"response_format": {"type": "json_schema", "json_schema": json_schema}}]
    logprobs: list[dict[str, Any]] = [] if one_word else [{}]
    if options.mode != "reply" and rubric.has_distinct_first_tokens:
        logprobs = [{"logprobs": True, "top_logprobs": n} for n in (20, 5)] + logprobs
    found = []
    for form in [*formats, {}]:
        for extra in logprobs:
            fields = {k: v for k, v in (form | extra).items() if k not in options.extra_body}
            if fields not in found:
                found.append(fields)
    return found


def read_answer(answer: Any, rubric: Rubric, one_word: bool, key: str | None = None) -> Reply:
    """Reads a server's answer. Text is made valid Unicode, and loses the key; counts that are none are taken as 0.

    Raises:
        ValueError: it does not follow the protocol (half a body, an error with status 200).
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        refusal, finish = message.get("refusal"), choice.get("finish_reason")
        scored_as, logprobs = _logprobs(choice.get("logprobs"), rubric, one_word)
        return Reply(
            text=_clean(_text_of(message.get("content")), key),
            refusal=_clean(str(refusal), key) if refusal else None,
            finish=_clean(finish, key) if isinstance(finish, str) else None,
            logprobs=logprobs,
            scored_as=scored_as,
            tokens_in=_count(usage.get("prompt_tokens")),
            tokens_out=_count(usage.get("completion_tokens")),
        )
    except (LookupError, TypeError, AttributeError) as error:
        shown = one_line(str(answer), key)
        raise ValueError(f"{type(error).__name__}: {one_line(str(error), key)} in {shown}") from error


def one_line(text: str, key: str | None) -> str:
    """A server's text as it is reported: without the key, on one line, cut."""
    return " ".join(_clean(text, key).split())[:MAX_ERROR_CHARACTERS]


def _clean(text: str, key: str | None) -> str:
    valid = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return valid.replace(key, "[key]") if key else valid


def _text_of(content: Any) -> str:
    """A message's text, also where it comes in parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content or ""


def _count(value: Any) -> int:
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return int(value) if sane else 0


def _logprobs(given: Any, rubric: Rubric, one_word: bool) -> tuple[str | None, dict[str, float] | None]:
    """The token that a JSON reply is scored by, and the log-probabilities of the scale's words in its place; ``None``
    where a server gave none, or what are no log-probabilities."""
    tokens = given.get("content") if isinstance(given, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(t, dict) and isinstance(t.get("token"), str) for t in tokens):
        return None, None
    at = score_place([token["token"] for token in tokens], rubric, one_word)
    listed = None if at is None else tokens[at].get("top_logprobs")
    if at is None or not isinstance(listed, list) or not listed:
        return None, None
    if not all(isinstance(entry, dict) for entry in listed):
        return None, None
    top = [(str(entry.get("token")), _logprob(entry.get("logprob"))) for entry in listed]
    if any(logprob is None for _, logprob in top):
        return None, None
    known = [(token, logprob) for token, logprob in top if logprob is not None]
    return None if one_word else bare(tokens[at]["token"]), word_logprobs(known, rubric)


def _logprob(value: Any) -> float | None:
    """``None`` where it is no log-probability."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and (value == -math.inf or LEAST_LOGPROB <= value <= ROUNDING) else None
