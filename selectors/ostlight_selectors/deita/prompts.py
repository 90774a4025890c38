"""What a scorer model is asked, and how it is made to fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample
from ostlight.errors import BadRecord

SCORES = ("1", "2", "3", "4", "5", "6")


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, with the question's pictures, one for each ``<image>`` mark in it."""

    question: str
    answer: str
    images: tuple[ImageRef, ...] = ()

    def words(self) -> Exchange:
        """For a model without eyes: no pictures, and no marks where they stood."""
        return Exchange(
            self.question.replace(IMAGE_PLACEHOLDER, "").strip(), self.answer.replace(IMAGE_PLACEHOLDER, "").strip()
        )


@dataclass(frozen=True)
class Prompt:
    """The wording a scorer was trained on (hkust-nlp's published scorers); a score token follows it."""

    before: str
    between: str
    after: str
    shows_answer: bool

    def lay_out(self, exchange: Exchange) -> str:
        answer = self.between + exchange.answer if self.shows_answer else ""
        return self.before + exchange.question + answer + self.after


ASK = "You are a helpful assistant. Please identify the {} of the {}. \n"
COMPLEXITY = Prompt(
    ASK.format("complexity score", "following user query") + "##Query: ", "", "  \n##Complexity: ", shows_answer=False
)
QUALITY = Prompt(
    ASK.format("quality score", "Response corresponding to the Question") + " #Question#:\n",
    "\n#Response#:\n",
    " \n##Quality: ",
    shows_answer=True,
)


def exchanges(sample: Sample) -> list[Exchange]:
    """A trained turn each, with what was said since the answer before it."""
    found: list[Exchange] = []
    said: list[str] = []
    seen = taken = 0
    for turn in sample.turns:
        if turn.role != "assistant":
            said.append(turn.text)
            seen += turn.text.count(IMAGE_PLACEHOLDER)
            continue
        if turn.trained:
            found.append(Exchange("\n".join(said), turn.text, sample.images[taken:seen]))
        seen += turn.text.count(IMAGE_PLACEHOLDER)
        said, taken = [], seen
    return found


def fitted(exchange: Exchange, limit: int, length: Callable[[Exchange], int], tokenizer: Any) -> Exchange:
    """The exchange, its question and answer cut at their ends until the whole prompt has at most ``limit`` tokens.

    The prompt itself is never cut: without its last words a model says anything but a score. The longer of the two
    texts gives way first.

    Args:
        length: tokens of the whole prompt around an exchange.
        tokenizer: a fast one.

    Raises:
        BadRecord: the prompt and the pictures alone are longer than the limit.
    """
    while (over := length(exchange) - limit) > 0:
        question, answer = (_ends(tokenizer, text) for text in (exchange.question, exchange.answer))
        room = len(question) + len(answer) - over
        if room <= 0:
            raise BadRecord(
                "prompt_too_long", f"the scorer's prompt alone exceeds max_length={limit}; raise it", "turns"
            )
        for_question = min(len(question), max(room // 2, room - len(answer)))
        shorter = replace(
            exchange,
            question=_cut(exchange.question, question, for_question),
            answer=_cut(exchange.answer, answer, room - for_question),
        )
        exchange = replace(shorter, images=exchange.images[: shorter.question.count(IMAGE_PLACEHOLDER)])
    return exchange


def _ends(tokenizer: Any, text: str) -> list[int]:
    """Where each token of a text ends, in characters."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [end for _, end in offsets]


def _cut(text: str, ends: list[int], tokens: int) -> str:
    return text if tokens >= len(ends) else text[: ends[tokens - 1] if tokens else 0]
