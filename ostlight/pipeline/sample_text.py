"""One sample as a model sees it, as text for people."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ostlight.data.sanitize import printable
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.losses import IGNORED

MAX_CHARACTERS = 2_000
"""Shown of a sample."""
REPEATED = 4
"""Equal tokens in a row that are shown as one, with their number."""


def mark_answers(encoder: Encoder, encoded: Encoded) -> str:
    """Returns the sample's text with the trained tokens between ``[[`` and ``]]``, and repeated tokens as one."""
    pairs = zip(encoded.inputs["input_ids"].tolist(), (encoded.labels != IGNORED).tolist(), strict=True)
    text = ""
    for is_answer, run in groupby(pairs, key=lambda pair: pair[1]):
        part = _decode([token for token, _ in run], encoder.tokenizer)
        text += f"[[{part}]]" if is_answer else part
    text = printable(text)
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
