"""Reads a score from a judge's reply."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostlight.errors import BadRecord
from ostlight_selectors.llm_judge.rubric import Rubric, as_number

KEPT_CHARACTERS = 4000
"""Characters of an unusable reply kept with the record."""
READ_CHARACTERS = 200_000
"""Characters of a reply, the last ones, in which a score is looked for."""
MOST_READINGS = 32
"""How often a text is read in all, in search of the objects in it: braces that open none begin the search anew."""
ROUNDING = 1e-3
"""By how much a server's probabilities may exceed 1."""


@dataclass(frozen=True)
class Reply:
    """A model's reply, reduced to what the score needs.

    Attributes:
        text: of the message.
        refusal: text the server sends in place of an answer.
        finish: why the model stopped; ``length`` where the limit took the rest.
        logprobs: log-probability of each word of the scale at the score's token; ``None`` if the server gave none.
            A word that is not among the most probable tokens a server lists is missing.
        scored_as: the token they are of; ``None`` where the server gave none.
        tokens_in, tokens_out: as the server counts them.
    """

    text: str
    refusal: str | None = None
    finish: str | None = None
    logprobs: Mapping[str, float] | None = None
    scored_as: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Judgement:
    """A score and where it comes from.

    Attributes:
        mode: ``reply`` (the score as written) or ``logprobs`` (its expected value).
        mass: probability of the scale's words together.
        probabilities: of each word of the scale, in its order, adding up to 1.
    """

    score: float
    reason: str | None
    text: str
    mode: str
    mass: float | None = None
    probabilities: list[float] | None = None


def judgement(reply: Reply, rubric: Rubric, mode: str, min_mass: float) -> Judgement:
    """Reads the score from a reply.

    Args:
        mode: ``reply`` (JSON), ``logprobs`` (one word) or ``auto`` (JSON; the expected score where it can be had).
        min_mass: least probability of the scale's words together for an expected score.

    Raises:
        BadRecord: ``reply_refused``, ``reply_unparsable``, ``no_logprobs``; the detail holds the reply's text.
    """
    if reply.refusal is not None or reply.finish == "content_filter":
        raise _bad_record("reply_refused", "the judge refuses to answer", reply)
    if mode == "logprobs":
        expected = expected_score(reply.logprobs, rubric)
        if expected is None:
            raise _bad_record("no_logprobs", "no log-probabilities of the scale's words came with the reply", reply)
        score, mass, probabilities = expected
        if mass < min_mass:
            raise _bad_record(
                "reply_unparsable", f"the scale's words hold {mass:.2g} of the probability, below {min_mass}", reply
            )
        return Judgement(score, None, reply.text, "logprobs", mass, probabilities)
    value, reason = _read(reply, rubric)
    # The place of the log-probabilities was looked for in the whole text, which may quote another score.
    is_of_score = reply.scored_as is None or _value(reply.scored_as, rubric) == value
    expected = expected_score(reply.logprobs, rubric) if mode == "auto" and is_of_score else None
    if expected is not None and expected[1] >= min_mass:
        score, mass, probabilities = expected
        return Judgement(score, reason, reply.text, "logprobs", mass, probabilities)
    return Judgement(value, reason, reply.text, "reply")


def expected_score(logprobs: Mapping[str, float] | None, rubric: Rubric) -> tuple[float, float, list[float]] | None:
    """Mean value over the scale's words by their probability, their mass, and the probabilities made to add up to 1;
    ``None`` where there are none, or what the server gave are no probabilities."""
    if not logprobs or not all(logprob <= ROUNDING for logprob in logprobs.values()):  # NaN is no probability either
        return None
    raw = [math.exp(logprobs[word]) if word in logprobs else 0.0 for word in rubric.words]
    mass = sum(raw)
    if not 0 < mass <= 1 + ROUNDING:
        return None
    probabilities = [p / mass for p in raw]
    return sum(p * v for p, v in zip(probabilities, rubric.values, strict=True)), mass, probabilities


def schema(rubric: Rubric) -> dict[str, Any]:
    """JSON schema of a reply; the reason comes first, so that the score follows from it."""
    score: dict[str, Any] = {"type": "string", "enum": list(rubric.words)}
    if all(re.fullmatch(r"-?\d+", word) for word in rubric.words):
        score = {"type": "integer", "enum": [int(word) for word in rubric.words]}
    properties = {"reason": {"type": "string"}, "score": score}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def word_logprobs(top: Sequence[tuple[str, float]], rubric: Rubric) -> dict[str, float]:
    """Log-probability of each word of the scale among a server's most probable tokens. Spellings of it are summed, and
    so are tokens that it alone begins with (``in`` of ``incorrect``); none are returned where two words do."""
    by_name = {word.casefold(): word for word in rubric.words}
    found: dict[str, float] = {}
    for token, logprob in top:
        said = bare(token).casefold()
        begun = (
            [by_name[said]] if said in by_name else [w for name, w in by_name.items() if said and name.startswith(said)]
        )
        if len(begun) > 1:
            return {}
        for word in begun:
            low, high = sorted((found.get(word, -math.inf), logprob))
            if high > -math.inf:
                found[word] = high + math.log(math.exp(low - high) + 1)
    return found


def score_place(tokens: Sequence[str], rubric: Rubric, one_word: bool) -> int | None:
    """Index of the token that holds the score: the last one, since a model may correct itself."""
    if one_word:
        return next((k for k, token in enumerate(tokens) if bare(token)), None)
    names = {word.casefold() for word in rubric.words}
    for k in range(len(tokens) - 1, -1, -1):
        if bare(tokens[k]).casefold() in names and _BEFORE_SCORE.search("".join(tokens[max(0, k - 12) : k])):
            return k
    return None


_BEFORE_SCORE = re.compile(r"score[\"']?\s*:\s*[\"']?\s*$", re.IGNORECASE)


def bare(token: str) -> str:
    """A token's text without blanks (also as tokenizers spell them) and quotes."""
    return token.strip(" \t\r\n\"'▁Ġ")


def _read(reply: Reply, rubric: Rubric) -> tuple[float, str | None]:
    """Score and reason as written in JSON: alone, in a code fence, or behind other text; the last object counts. Of a
    reply that was cut only one that nothing follows does: what was cut may take it back."""
    objects, behind = _objects(reply.text)
    found, is_cut = [o for o in objects if "score" in o], reply.finish == "length"
    if not found:
        cut = " (it was cut at max_tokens)" if is_cut else ""
        raise _bad_record("reply_unparsable", f"no JSON object with a score in the reply{cut}", reply)
    if is_cut and behind.strip(" \t\r\n`"):
        raise _bad_record("reply_unparsable", "the reply was cut at max_tokens, behind a score that was a draft", reply)
    score, reason = found[-1]["score"], found[-1].get("reason")
    value = _value(score, rubric)
    if value is None:
        scale = ", ".join(rubric.words)
        raise _bad_record("reply_unparsable", f"the score {json.dumps(score)[:80]} is not on the scale {scale}", reply)
    if reason is not None and not isinstance(reason, str):
        raise _bad_record("reply_unparsable", f"the reason is {type(reason).__name__}, not text", reply)
    return value, reason


def _value(score: Any, rubric: Rubric) -> float | None:
    """Value of the score as written, as a word, a number or a number in quotes; ``None`` if it is not on the scale."""
    if isinstance(score, bool) or not isinstance(score, str | int | float):
        return None
    said = score.strip() if isinstance(score, str) else score
    number = as_number(said)
    for word, value in zip(rubric.words, rubric.values, strict=True):
        if isinstance(said, str) and said.casefold() == word.casefold():
            return value
        if number is not None and as_number(word) == number:
            return value
    return None


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects in a text, outermost ones, in order, and what follows the last; thoughts in <think> are
    skipped."""
    text = _without_thoughts(text[-READ_CHARACTERS:])
    found, begin, left, behind = [], text.find("{"), MOST_READINGS * len(text), text
    while begin >= 0 and left > 0:
        end = _end_of_object(text, begin)
        left -= (len(text) if end is None else end) - begin
        value = None if end is None else _parsed(text[begin:end])
        if value is not None and end is not None:
            found.append(value)
            behind = text[end:]
        begin = text.find("{", begin + 1 if value is None or end is None else end)
    return found, behind


def _without_thoughts(text: str) -> str:
    """What stands outside of <think> and </think>; a thought that was cut off goes to the end.

    A template may put the first <think> into the prompt: then the reply begins within the thought.
    """
    begin, end = text.find("<think>"), text.find("</think>")
    within = end >= 0 and not 0 <= begin < end
    kept, at = [], end + len("</think>") if within else 0
    while (begin := text.find("<think>", at)) >= 0:
        kept.append(text[at:begin])
        end = text.find("</think>", begin)
        if end < 0:
            return "".join(kept)
        at = end + len("</think>")
    return "".join([*kept, text[at:]])


def _end_of_object(text: str, begin: int) -> int | None:
    """Where the brace at ``begin`` is closed, braces in quotes left out; ``None`` where it is not."""
    depth = 0
    for match in _STRUCTURE.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*+(?:"|\Z)|[{}]', re.DOTALL)
"""A whole string, one without an end reaching to that of the text; or a brace."""
_BAD_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})|\\')


def _parsed(text: str) -> dict[str, Any] | None:
    """A JSON object, with line breaks in its strings if need be, and backslashes that begin no escape (LaTeX) taken as
    they are; ``None`` where it is none."""
    for attempt in (text, _BAD_ESCAPE.sub(lambda match: match[0] if match[1] else r"\\", text)):
        try:
            value = json.loads(attempt, strict=False)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def _bad_record(reason: str, problem: str, reply: Reply) -> BadRecord:
    return BadRecord(reason, f"{problem}; the reply was: {(reply.refusal or reply.text)[:KEPT_CHARACTERS]!r}")
