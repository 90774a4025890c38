"""Which tokens are an answer, and the proof that they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ostlight.errors import BadRecord
from ostlight.models.encoding.answer_marks import Span, unproved
from ostlight.models.encoding.chat import Answer


@dataclass(frozen=True)
class Tokenized:
    """What a processor handed to its tokenizer, and what it got back.

    Attributes:
        text: the conversation with each image's placeholder replaced by those of its tokens.
        ids: of its tokens.
        offsets: ``[T, 2]``, the characters of each token in ``text``; the same character twice for a token that stands
            for none.
    """

    text: str
    ids: list[int]
    offsets: np.ndarray

    def tokens(self, span: Span) -> tuple[int, int]:
        """First token that overlaps the characters, and the one behind the last; equal where none does."""
        wide, starts, stops = self._wide
        first = np.searchsorted(stops, span[0], side="right")
        behind = np.searchsorted(starts, span[1], side="left")
        return (int(wide[first]), int(wide[behind - 1]) + 1) if first < behind else (0, 0)

    @cached_property
    def _wide(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of the tokens that stand for characters, and where these begin and end."""
        wide = np.flatnonzero(self.offsets[:, 1] > self.offsets[:, 0])
        return wide, self.offsets[wide, 0], self.offsets[wide, 1]


class RecordingTokenizer:
    """A tokenizer that remembers the texts it was given, and is otherwise the one it stands for."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._seen: list[tuple[Any, Any]] = []

    def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> Any:
        encoding = self._tokenizer(text, *arguments, **options)
        self._seen.append((text, encoding))
        return encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def of(self, ids: Sequence[int]) -> Tokenized | None:
        """The call that gave these tokens; ``None`` where none did."""
        for text, encoding in reversed(self._seen):
            texts = [text] if isinstance(text, str) else text
            fast = getattr(encoding, "encodings", None)
            if fast and len(texts) == len(fast) == 1 and isinstance(texts[0], str) and fast[0].ids == list(ids):
                return Tokenized(texts[0], list(ids), np.array(fast[0].offsets, dtype=np.int64).reshape(-1, 2))
        return None


@contextmanager
def recorded(processor: Any) -> Iterator[RecordingTokenizer]:
    """The processor's tokenizer, recording inside the block."""
    tokenizer = processor.tokenizer
    recorder = RecordingTokenizer(tokenizer)
    processor.tokenizer = recorder
    try:
        yield recorder
    finally:
        processor.tokenizer = tokenizer


def answer_tokens(
    text: str, answers: Sequence[Answer], tokenized: Tokenized, placeholders: Collection[str], tokenizer: Any
) -> list[tuple[int, int]]:
    """First token of each answer, and the one behind its last.

    Tokens that reach into the answer from outside are part of it: a space before a word, mostly. The proof is that the
    tokens, decoded, are the answer and the end of its turn, white space aside. Where the tokenizer has no token for
    some characters, they must decode to what the answer alone decodes to.

    Args:
        text: the conversation as the chat template writes it.
        answers: in it.
        tokenized: the same conversation, images' placeholders expanded.
        placeholders: texts that stand for an image in ``text``.
        tokenizer: decodes.

    Raises:
        BadRecord: ``labels_unproved``.
    """
    moved = _expansion(text, tokenized.text, placeholders)
    found = []
    for answer in answers:
        start, stop = tokenized.tokens(moved(answer.span))
        _prove(tokenized.ids[start:stop], answer.text, tokenizer)
        found.append((start, stop))
    return found


def _prove(ids: list[int], text: str, tokenizer: Any) -> None:
    decoded = _decoded(ids, tokenizer)
    if decoded == _without_space(text):
        return
    if decoded != _decoded(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer):
        raise unproved(f"the answer's tokens say {decoded[:60]!r} where the record says {_without_space(text)[:60]!r}")


def _decoded(ids: list[int], tokenizer: Any) -> str:
    return _without_space(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))


def _without_space(text: str) -> str:
    return "".join(text.split())


def _expansion(text: str, expanded: str, placeholders: Collection[str]) -> Callable[[Span], Span]:
    """Moves spans of ``text`` to ``expanded``, which is the same but for what stands at the placeholders.

    The pieces between placeholders follow each other in both. A piece is where it is found first, provided that it is
    found there from the end too: then there is no other place for it.
    """
    if text == expanded:
        return lambda span: span
    pattern = "|".join(re.escape(p) for p in sorted(placeholders, key=len, reverse=True) if p) or r"(?!)"
    edges = [0, *(place for match in re.finditer(pattern, text) for place in match.span()), len(text)]
    pieces = [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    from_start = _places(pieces, expanded)
    from_end = [
        len(expanded) - place - len(piece)
        for piece, place in zip(pieces, _places([p[::-1] for p in pieces[::-1]], expanded[::-1])[::-1], strict=True)
    ]

    def moved(span: Span) -> Span:
        k = int(np.searchsorted(edges[::2], span[0], side="right")) - 1
        if span[1] > edges[2 * k + 1]:
            raise unproved("an answer holds an image")
        if from_start[k] != from_end[k]:
            raise unproved("the processor writes an answer's surroundings more than once")
        shift = from_start[k] - edges[2 * k]
        return span[0] + shift, span[1] + shift

    return moved


def _places(pieces: Sequence[str], text: str) -> list[int]:
    """Where each piece is found first behind the one before it."""
    places, place = [], 0
    for piece in pieces:
        place = text.find(piece, place)
        if place < 0:
            raise BadRecord("labels_unproved", "the processor changes the text between images", "turns")
        places.append(place)
        place += len(piece)
    return places
