"""A language model that answers with a score from 1 to 6."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from ostlight.config.schema import Model
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.errors import BadRecord, OstlightError, SelectorError
from ostlight.models.batch import Collator, by_token_budget
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.last_token import at_last_token
from ostlight.models.load import collator_for, load_encoder, load_model
from ostlight_selectors.deita.prompts import SCORES, Prompt, QuestionAnswer, truncate


class Scorer(ABC):
    """Expected score under a model's probabilities of the six score tokens, softmax over these six alone.

    Args:
        model: in eval mode.
        tokenizer: a fast one.
        collator: how the model's inputs are stacked.
        prompt: the question it is asked.
        max_length: tokens of the whole prompt; question and answer are cut to fit, the prompt never.
        tokens_per_batch: padded tokens in one forward pass.

    Raises:
        SelectorError: the tokenizer has no single token for each score.
    """

    takes_images = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        collator: Collator,
        prompt: Prompt,
        max_length: int,
        tokens_per_batch: int,
    ) -> None:
        self.model, self.tokenizer, self.collator, self.prompt = model, tokenizer, collator, prompt
        self.max_length, self.tokens_per_batch = max_length, tokens_per_batch
        text = prompt.render(QuestionAnswer("a", "a"))
        self.score_ids = _last_tokens([self.tokens_of(text, score) for score in SCORES])
        self.tokens_read = 0

    @abstractmethod
    def tokens_of(self, prompt: str, score: str) -> list[int]:
        """Tokens of the prompt with a score after it."""

    @abstractmethod
    def encode_whole(self, pair: QuestionAnswer) -> Encoded:
        """The prompt, of any length.

        Raises:
            BadRecord: an image cannot be read.
        """

    def encode(self, pair: QuestionAnswer) -> Encoded:
        """The whole prompt, cut to fit.

        Raises:
            BadRecord: it cannot be cut to fit, or an image cannot be read.
        """
        if not self.prompt.shows_answer:
            pair = replace(pair, answer="")
        if not self.takes_images:
            pair = pair.without_images()
        return self.encode_whole(
            truncate(pair, self.max_length, lambda pair: len(self.encode_whole(pair)), self.tokenizer)
        )

    def scores(self, pairs: Sequence[QuestionAnswer]) -> list[float | BadRecord]:
        """One score from 1 to 6 for each pair, or why there is none."""
        scores: dict[int, float | BadRecord] = {}
        encoded: dict[int, Encoded] = {}
        for k, pair in enumerate(pairs):
            try:
                encoded[k] = self.encode(pair)
            except BadRecord as error:
                scores[k] = error
        for group in by_token_budget([len(e) for e in encoded.values()], self.tokens_per_batch):
            rows = [list(encoded)[g] for g in group]
            scores |= zip(rows, map(_expected, self._logits([encoded[k] for k in rows])), strict=True)
        return [scores[k] for k in range(len(pairs))]

    def _logits(self, encoded: list[Encoded]) -> Tensor:
        """``[N, 6]`` of the score tokens, fp64."""
        batch = self.collator.batch([Sample("", ())] * len(encoded), encoded).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        self.tokens_read += sum(batch.tokens)
        _, logits = at_last_token(self.model, inputs)
        return logits[:, self.score_ids].double().cpu()


class TextScorer(Scorer):
    """Asked in the published scorers' plain format, with the special tokens the tokenizer puts around any text."""

    def tokens_of(self, prompt: str, score: str) -> list[int]:
        return list(self.tokenizer(prompt + score)["input_ids"])

    def encode_whole(self, pair: QuestionAnswer) -> Encoded:
        # A score is appended and its token dropped again: a tokenizer may join the last space with what follows.
        ids = torch.tensor(self.tokens_of(self.prompt.render(pair), SCORES[0])[:-1])
        return Encoded({"input_ids": ids}, torch.full_like(ids, -100))


class ChatScorer(Scorer):
    """Asked in the user's turn of a conversation, with the images if the model takes images."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, *others: Any) -> None:
        self.encoder, self.takes_images = encoder, encoder.takes_images
        super().__init__(model, encoder.tokenizer, *others)

    def tokens_of(self, prompt: str, score: str) -> list[int]:
        content = [{"type": "text", "text": prompt}] if self.takes_images else prompt
        turns = [{"role": "user", "content": content}]
        asked = self.encoder.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(asked + score, add_special_tokens=False)["input_ids"])

    def encode_whole(self, pair: QuestionAnswer) -> Encoded:
        text = self.prompt.render(pair)
        images = pair.images[: text.count(IMAGE_PLACEHOLDER)]
        return self.encoder.encode_prompt(Sample("", (Turn("user", text),), images))


def load_scorer(settings: Model, prompt: Prompt, option: str, tokens_per_batch: int, device: torch.device) -> Scorer:
    """A scorer from a folder or hub name: a ``ChatScorer`` of a vision model, a ``TextScorer`` of any other.

    Args:
        option: name of the option that names the model, for messages.

    Raises:
        OstlightError: it cannot be loaded, or its tokenizer has no token for a score.
    """
    where = f"selector.options.{option}"
    model = load_model(settings, where)
    model.to(device)  # type: ignore[arg-type]
    encoder = None
    with suppress(OstlightError):  # published scorers have no chat template
        encoder = load_encoder(settings, where)
    try:
        if encoder is not None and encoder.takes_images:
            collator = collator_for(model, encoder)
            return ChatScorer(model, encoder, collator, prompt, settings.max_length, tokens_per_batch)
        tokenizer = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
        collator = Collator(tokenizer.pad_token_id or 0)
        return TextScorer(model, tokenizer, collator, prompt, settings.max_length, tokens_per_batch)
    except SelectorError as error:
        raise SelectorError(f"{where}: {error}") from error
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise OstlightError(f"{where}: cannot load the tokenizer of {settings.path!r}: {first}") from error


def _last_tokens(with_scores: list[list[int]]) -> list[int]:
    """The last token of each of six texts that differ in their last character alone.

    Raises:
        SelectorError: they differ in more than one token, or not at all.
    """
    shared, last = {tuple(ids[:-1]) for ids in with_scores}, [ids[-1] for ids in with_scores]
    if len(shared) != 1 or len(set(last)) != len(last):
        raise SelectorError(
            f"its tokenizer has no token of its own for each of the scores {', '.join(SCORES)} after the prompt "
            f"(last tokens: {last}); name a model whose tokenizer has"
        )
    return last


def _expected(logits: Tensor) -> float | BadRecord:
    missing = [score for score, known in zip(SCORES, logits.isfinite().tolist(), strict=True) if not known]
    if missing:
        return BadRecord("no_score", f"the scorer gave no probability for {', '.join(missing)}")
    return float((logits.softmax(0) * torch.arange(1, 7)).sum())
