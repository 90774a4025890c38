"""Prompts of the scorer models, cut to their length limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample
from ostlight.errors import BadRecord

SCORES = ("1", "2", "3", "4", "5", "6")


@dataclass(frozen=True)
class QuestionAnswer:
    """One question and its answer, with the question's images, one for each ``<image>`` placeholder in it."""

    question: str
    answer: str
    images: tuple[ImageRef, ...] = ()

    def without_images(self) -> QuestionAnswer:
        """The text alone, for a model that takes no images."""
        return QuestionAnswer(
            self.question.replace(IMAGE_PLACEHOLDER, "").strip(), self.answer.replace(IMAGE_PLACEHOLDER, "").strip()
        )


@dataclass(frozen=True)
class Prompt:
    """The wording a scorer was trained on (hkust-nlp's published scorers); a score token follows it."""

    before: str
    between: str
    after: str
    shows_answer: bool

    def render(self, pair: QuestionAnswer) -> str:
        answer = self.between + pair.answer if self.shows_answer else ""
        return self.before + pair.question + answer + self.after


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


def question_answer_pairs(sample: Sample) -> list[QuestionAnswer]:
    """One pair per trained turn: its text, function calls as JSON, and the turns since the answer before it."""
    pairs: list[QuestionAnswer] = []
    question: list[str] = []
    seen = first = 0
    for turn in sample.turns:
        if turn.role != "assistant":
            question.append(turn.text_with_calls)
            seen += turn.text.count(IMAGE_PLACEHOLDER)
            continue
        if turn.trained:
            pairs.append(QuestionAnswer("\n".join(question), turn.text_with_calls, sample.images[first:seen]))
        seen += turn.text.count(IMAGE_PLACEHOLDER)
        question, first = [], seen
    return pairs


def truncate(
    pair: QuestionAnswer, limit: int, length: Callable[[QuestionAnswer], int], tokenizer: Any
) -> QuestionAnswer:
    """The pair, its question and answer cut at their ends until the whole prompt has at most ``limit`` tokens.

    The prompt itself is never cut: without its end a model does not answer with a score. The longer of the two texts is
    cut first.

    Args:
        length: tokens of the whole prompt around a pair.
        tokenizer: a fast one.

    Raises:
        BadRecord: the prompt and the images alone are longer than the limit.
    """
    while (over := length(pair) - limit) > 0:
        question, answer = (_token_ends(tokenizer, text) for text in (pair.question, pair.answer))
        remaining = len(question) + len(answer) - over
        if remaining <= 0:
            raise BadRecord(
                "prompt_too_long", f"the scorer's prompt alone exceeds max_length={limit}; raise it", "turns"
            )
        for_question = min(len(question), max(remaining // 2, remaining - len(answer)))
        shorter = replace(
            pair,
            question=_cut(pair.question, question, for_question),
            answer=_cut(pair.answer, answer, remaining - for_question),
        )
        pair = replace(shorter, images=pair.images[: shorter.question.count(IMAGE_PLACEHOLDER)])
    return pair


def _token_ends(tokenizer: Any, text: str) -> list[int]:
    """Where each token of a text ends, in characters."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [end for _, end in offsets]


def _cut(text: str, ends: list[int], tokens: int) -> str:
    """The text of the first tokens; without a character that goes on in the next one, as in bytes of an emoji."""
    if tokens >= len(ends):
        return text
    while tokens and ends[tokens - 1] == ends[tokens]:
        tokens -= 1
    return text[: ends[tokens - 1] if tokens else 0]
