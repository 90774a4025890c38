"""A language model that answers with a score from 1 to 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        encode: a prompt and its pair, up to where the score follows.
        score_ids: tokens that stand for the scores there.
        takes_images: whether it is shown the pictures.
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
        prompt: what it is asked.
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

    def scores(self, asked: Sequence[QuestionAnswer]) -> list[float | BadRecord]:
        """One score from 1 to 6 an pair, or why there is none."""
        found: list[float | BadRecord | None] = [None] * len(asked)
        encoded: dict[int, Encoded] = {}
        for k, pair in enumerate(asked):
            try:
                encoded[k] = self.encode(pair)
            except BadRecord as error:
                found[k] = error
        places = list(encoded)
        for group in by_token_budget([len(encoded[k]) for k in places], self.tokens_per_batch):
            rows = [places[g] for g in group]
            for k, logits in zip(rows, self._logits([encoded[r] for r in rows]), strict=True):
                found[k] = _expected(logits)
        return [f for f in found if f is not None]

    def encode(self, pair: QuestionAnswer) -> Encoded:
        """The whole prompt, cut to fit.

        Raises:
            BadRecord: it cannot be made to fit, or a picture cannot be read.
        """
        pair = pair if self.prompt.shows_answer else replace(pair, answer="")
        pair = pair if self.format.takes_images else pair.without_images()

        def length(e: QuestionAnswer) -> int:
            return len(self.format.encode(self.prompt, e))

        fit = truncate(pair, self.max_length, length, self.format.tokenizer)
        return self.format.encode(self.prompt, fit)

    def _logits(self, encoded: list[Encoded]) -> Tensor:
        """``[N, 6]`` of the score tokens, fp64."""
        batch = self.format.collator.batch([Sample("", ())] * len(encoded), encoded).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        self.tokens_read += sum(batch.tokens)
        _, logits = at_last_token(self.model, inputs)
        return logits[:, self.score_ids].double().cpu()


def load_scorer(settings: Model, prompt: Prompt, option: str, tokens_per_batch: int, device: torch.device) -> Scorer:
    """From a folder or hub name: a text model is asked in the published scorers' plain format, a vision model in its
    own chat format with the pictures.

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
    """The prompt as text, with the special tokens the tokenizer puts around any text; no pictures."""

    def with_score(text: str, score: str) -> list[int]:
        return list(tokenizer(text + score)["input_ids"])

    def encode(prompt: Prompt, pair: QuestionAnswer) -> Encoded:
        # With a score behind it and that taken off again: a tokenizer may join the last space with what follows.
        ids = torch.tensor(with_score(prompt.render(pair), SCORES[0])[:-1])
        return Encoded({"input_ids": ids}, torch.full_like(ids, -100))

    def score_ids(prompt: Prompt) -> list[int]:
        text = prompt.render(QuestionAnswer("a", "a"))
        return _last_tokens([with_score(text, s) for s in SCORES])

    pad = tokenizer.pad_token_id
    return PromptFormat(tokenizer, Collator(0 if pad is None else pad), encode, score_ids, takes_images=False)


def chat_format(encoder: Encoder, collator: Collator) -> PromptFormat:
    """The prompt as the user's turn of a conversation, with its pictures where the model takes them."""

    def encode(prompt: Prompt, pair: QuestionAnswer) -> Encoded:
        said = Turn("user", prompt.render(pair))
        marks = said.text.count(IMAGE_PLACEHOLDER)
        return encoder.encode_prompt(Sample("", (said,), pair.images[:marks]))

    def score_ids(prompt: Prompt) -> list[int]:
        text = prompt.render(QuestionAnswer("a", "a"))
        content = [{"type": "text", "text": text}] if encoder.takes_images else text
        turns = [{"role": "user", "content": content}]
        asked = encoder.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return _last_tokens([list(encoder.tokenizer(asked + s, add_special_tokens=False)["input_ids"]) for s in SCORES])

    return PromptFormat(encoder.tokenizer, collator, encode, score_ids, takes_images=encoder.takes_images)


def _last_tokens(with_scores: list[list[int]]) -> list[int]:
    """The tokens in which six texts differ that differ in their last character alone.

    Raises:
        SelectorError: they differ in more than one token, or not at all.
    """
    shared, last = {tuple(ids[:-1]) for ids in with_scores}, [ids[-1] for ids in with_scores]
    if len(shared) != 1 or len(set(last)) != len(last):
        raise SelectorError(
            f"its tokenizer has no token of its own for each of the scores {', '.join(SCORES)} behind the prompt "
            f"(last tokens: {last}); name a model whose tokenizer has"
        )
    return last


def _expected(logits: Tensor) -> float | BadRecord:
    if not bool(logits.isfinite().all()):
        missing = [s for s, x in zip(SCORES, logits.tolist(), strict=True) if not torch.tensor(x).isfinite()]
        return BadRecord("no_score", f"the scorer gave no probability for {', '.join(missing)}")
    return float((logits.softmax(0) * torch.arange(1, 7)).sum())


def _processor_or_tokenizer(settings: Model, where: str) -> Any:
    """An ``Encoder`` for a model with eyes; else the bare tokenizer, chat template or not."""
    try:
        encoder = load_encoder(settings, where)
    except OstlightError:
        encoder = None  # published scorers have no chat template
    if encoder is not None and encoder.takes_images:
        return encoder
    try:
        return AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise OstlightError(f"{where}: cannot load the tokenizer of {settings.path!r}: {first}") from error
