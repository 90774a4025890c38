"""A language model that answers with a score from 1 to 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from ostlight.config.schema import Model
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.errors import BadRecord, OstlightError, SelectorError
from ostlight.models.batch import Collator, by_token_budget
from ostlight.models.encode import Encoded, Encoder
from ostlight.models.last_token import at_last_token
from ostlight.models.load import collator_for, load_encoder, load_model
from ostlight.models.module import MultimodalModel
from ostlight_selectors.deita.prompts import SCORES, Prompt, QuestionAnswer, truncate


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt becomes what a model reads.

    Attributes:
        tokenizer: of the model; a fast one.
        collator: how its inputs are stacked.
        encode: a prompt and its pair, up to the score.
        score_ids: the tokens of the six scores after a prompt.
        takes_images: whether the model is shown the images.
    """

    tokenizer: Any
    collator: Collator
    encode: Callable[[Prompt, QuestionAnswer], Encoded]
    score_ids: Callable[[Prompt], list[int]]
    takes_images: bool


class Scorer:
    """Expected score under a model's probabilities of the six score tokens, softmax over these six alone.

    Args:
        model: in eval mode.
        format: of its prompts.
        prompt: the question it is asked.
        max_length: tokens of the whole prompt; question and answer are cut to fit, the prompt never.
        tokens_per_batch: padded tokens in one forward pass.

    Raises:
        SelectorError: the tokenizer has no single token for each score.
    """

    def __init__(
        self, model: PreTrainedModel, format: PromptFormat, prompt: Prompt, max_length: int, tokens_per_batch: int
    ) -> None:
        self.model, self.format, self.prompt = model, format, prompt
        self.max_length, self.tokens_per_batch = max_length, tokens_per_batch
        self.score_ids = format.score_ids(prompt)
        self.tokens_read = 0

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

    def encode(self, pair: QuestionAnswer) -> Encoded:
        """The whole prompt, cut to fit.

        Raises:
            BadRecord: it cannot be cut to fit, or an image cannot be read.
        """
        if not self.prompt.shows_answer:
            pair = replace(pair, answer="")
        if not self.format.takes_images:
            pair = pair.without_images()

        encode = partial(self.format.encode, self.prompt)
        return encode(truncate(pair, self.max_length, lambda pair: len(encode(pair)), self.format.tokenizer))

    def _logits(self, encoded: list[Encoded]) -> Tensor:
        """``[N, 6]`` of the score tokens, fp64."""
        batch = self.format.collator.batch([Sample("", ())] * len(encoded), encoded).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        self.tokens_read += sum(batch.tokens)
        _, logits = at_last_token(self.model, inputs)
        return logits[:, self.score_ids].double().cpu()


def load_scorer(settings: Model, prompt: Prompt, option: str, tokens_per_batch: int, device: torch.device) -> Scorer:
    """A scorer from a folder or hub name. A text model is asked in the published scorers' plain format, a vision model
    in its own chat format, with the images.

    Args:
        option: name of the option that names the model, for messages.

    Raises:
        OstlightError: it cannot be loaded, or its tokenizer has no token for a score.
    """
    where = f"selector.options.{option}"
    model = load_model(settings, where)
    model.to(device)  # type: ignore[arg-type]
    tokenizer = _processor_or_tokenizer(settings, where)
    if isinstance(tokenizer, Encoder):
        format = chat_format(tokenizer, collator_for(model, tokenizer))
    else:
        format = plain_format(tokenizer)
    try:
        return Scorer(model, format, prompt, settings.max_length, tokens_per_batch)
    except SelectorError as error:
        raise SelectorError(f"{where}: {error}") from error


def proxy_scorer(model: MultimodalModel, prompt: Prompt, max_length: int, tokens_per_batch: int) -> Scorer:
    """The proxy itself, asked in its chat format."""
    return Scorer(model.model, chat_format(model.encoder, model.collator), prompt, max_length, tokens_per_batch)


def plain_format(tokenizer: Any) -> PromptFormat:
    """The prompt as text, with the special tokens the tokenizer puts around any text; no images."""

    def with_score(text: str, score: str) -> list[int]:
        return list(tokenizer(text + score)["input_ids"])

    def encode(prompt: Prompt, pair: QuestionAnswer) -> Encoded:
        # A score is appended and its token dropped again: a tokenizer may join the last space with what follows.
        ids = torch.tensor(with_score(prompt.render(pair), SCORES[0])[:-1])
        return Encoded({"input_ids": ids}, torch.full_like(ids, -100))

    def score_ids(prompt: Prompt) -> list[int]:
        text = prompt.render(QuestionAnswer("a", "a"))
        return _last_tokens([with_score(text, s) for s in SCORES])

    pad = tokenizer.pad_token_id
    return PromptFormat(tokenizer, Collator(0 if pad is None else pad), encode, score_ids, takes_images=False)


def chat_format(encoder: Encoder, collator: Collator) -> PromptFormat:
    """The prompt as the user's turn of a conversation, with its images if the model takes images."""

    def encode(prompt: Prompt, pair: QuestionAnswer) -> Encoded:
        text = prompt.render(pair)
        return encoder.encode_prompt(Sample("", (Turn("user", text),), pair.images[: text.count(IMAGE_PLACEHOLDER)]))

    def score_ids(prompt: Prompt) -> list[int]:
        text = prompt.render(QuestionAnswer("a", "a"))
        content = [{"type": "text", "text": text}] if encoder.takes_images else text
        turns = [{"role": "user", "content": content}]
        asked = encoder.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return _last_tokens([list(encoder.tokenizer(asked + s, add_special_tokens=False)["input_ids"]) for s in SCORES])

    return PromptFormat(encoder.tokenizer, collator, encode, score_ids, takes_images=encoder.takes_images)


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
    if not bool(logits.isfinite().all()):
        missing = [s for s, x in zip(SCORES, logits.tolist(), strict=True) if not torch.tensor(x).isfinite()]
        return BadRecord("no_score", f"the scorer gave no probability for {', '.join(missing)}")
    return float((logits.softmax(0) * torch.arange(1, 7)).sum())


def _processor_or_tokenizer(settings: Model, where: str) -> Any:
    """An ``Encoder`` for a vision model; else the tokenizer alone, with or without a chat template."""
    with suppress(OstlightError):  # published scorers have no chat template
        encoder = load_encoder(settings, where)
        if encoder.takes_images:
            return encoder
    try:
        return AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise OstlightError(f"{where}: cannot load the tokenizer of {settings.path!r}: {first}") from error
