"""One sample as text for people: its turns, or the tokens that a model sees."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ostlight.data.sample import Sample
from ostlight.data.sanitize import harmless
from ostlight.models.encode import Encoded, Encoder
from ostlight.models.losses import IGNORED

MAX_TURN_CHARACTERS, MAX_CHARACTERS = 300, 2_000
"""Shown of a turn, and of a sample."""
REPEATED = 4
"""Equal tokens in a row that are shown as one, with their number."""


def describe_sample(sample: Sample) -> list[str]:
    """Returns the turns as lines of text, cut and safe to print."""
    lines = []
    for turn in sample.turns:
        omitted = f" ... ({len(turn.text):,} characters)" if len(turn.text) > MAX_TURN_CHARACTERS else ""
        first, *rest = harmless(turn.text[:MAX_TURN_CHARACTERS] + omitted).split("\n")
        lines += [f"{turn.role}: {first}", *(f"  {line}" for line in rest)]
    return lines


def mark_answers(encoder: Encoder, encoded: Encoded) -> str:
    """Returns the sample's text with the trained tokens between ``[[`` and ``]]``, and repeated tokens as one."""
    pairs = zip(encoded.inputs["input_ids"].tolist(), (encoded.labels != IGNORED).tolist(), strict=True)
    text = ""
    for is_answer, run in groupby(pairs, key=lambda pair: pair[1]):
        part = _decode([token for token, _ in run], encoder.tokenizer)
        text += f"[[{part}]]" if is_answer else part
    text = harmless(text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ... ({len(text):,} characters)"


def _decode(tokens: list[int], tokenizer: Any) -> str:
    text, pending = "", []
    for token, equal in groupby(tokens):
        count = len(list(equal))
        if count < REPEATED:
            pending += [token] * count
        else:
            text += str(tokenizer.decode(pending)) + f"{tokenizer.decode([token])}[x{count}]"
            pending = []
    return text + str(tokenizer.decode(pending))
