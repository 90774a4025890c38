"""A judge loaded in this process: next-token probabilities of the scale's words, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature

import torch
from transformers import PreTrainedTokenizerBase

from ostlight.config.schema import Model
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.batch import by_token_budget
from ostlight.models.encoding.encoder import Encoded
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel
from ostlight.selection.usage import Usage
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.reply import Judgement, Reply, judgement
from ostlight_selectors.llm_judge.rubric import Rubric


class LocalJudge:
    """Judges with a Hugging Face model.

    Args:
        options: ``model`` is its folder or hub name.
        rubric: of the judge.
        usage: tokens and FLOPs are added to it.

    Raises:
        OstlightError: the model cannot be loaded.
        SelectorError: two words of the scale begin with the same token.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric, usage: Usage) -> None:
        settings = Model(options.model, options.trust_remote_code, options.dtype, options.max_length)
        self.model = MultimodalModel.load(settings, "selector.options.model")
        self.options, self.rubric, self.usage = options, rubric, usage
        self.word_ids = word_ids(self.model.encoder.tokenizer, rubric.words)
        self._flops_per_token = 0.0

    def judge(self, samples: Sequence[Sample], device: torch.device) -> list[Judgement | BadRecord]:
        """A judgement of each sample, or why it has none."""
        if self.model.device != device:
            self.model.to(device)
        outcomes: dict[int, Judgement | BadRecord] = {}
        prompts: dict[int, tuple[Sample, Encoded]] = {}
        for i, sample in enumerate(samples):
            conversation = self.rubric.conversation(sample, one_word=True)
            try:
                prompts[i] = conversation, self._encoded(conversation)
            except BadRecord as bad:
                outcomes[i] = bad
        lengths = [len(prompt) for _, prompt in prompts.values()]
        for group in by_token_budget(lengths, self.options.tokens_per_batch):
            rows = [list(prompts)[k] for k in group]
            replies = self._replies([prompts[i][0] for i in rows], [prompts[i][1] for i in rows])
            for i, reply in zip(rows, replies, strict=True):
                try:
                    outcomes[i] = judgement(reply, self.rubric, "logprobs", self.options.min_mass)
                except BadRecord as bad:
                    outcomes[i] = bad
        return [outcomes[i] for i in range(len(samples))]

    def _encoded(self, conversation: Sample) -> Encoded:
        prompt = self.model.encoder.encode_prompt(conversation)
        if len(prompt) > self.options.max_length:
            detail = f"the judge's prompt has {len(prompt)} tokens, the limit is {self.options.max_length} (max_length)"
            raise BadRecord("judge_prompt_too_long", detail)
        return prompt

    def _replies(self, conversations: Sequence[Sample], prompts: Sequence[Encoded]) -> list[Reply]:
        """One batch; its operations are counted on the first one and scaled by tokens afterwards."""
        tokens = sum(len(prompt) for prompt in prompts)
        counter = FlopCounter()
        with torch.no_grad(), nullcontext() if self._flops_per_token else counter:
            replies = self._probabilities(conversations, prompts)
        self._flops_per_token = self._flops_per_token or counter.total / tokens
        self.usage.add(tokens_in=tokens, flops=self._flops_per_token * tokens)
        return replies

    def _probabilities(self, conversations: Sequence[Sample], prompts: Sequence[Encoded]) -> list[Reply]:
        # Padded on the left, every prompt ends, and its answer begins, in the last column.
        batch = replace(self.model.collator, side="left").batch(conversations, prompts).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        last = {"logits_to_keep": 1} if "logits_to_keep" in signature(self.model.model.forward).parameters else {}
        logits = self.model.model(**inputs, use_cache=False, **last).logits[:, -1]
        logprobs = logits.float().log_softmax(-1)
        rows = torch.stack([logprobs[:, ids].logsumexp(-1) for ids in self.word_ids], 1).tolist()
        likeliest = self.model.encoder.tokenizer.batch_decode(logprobs.argmax(-1)[:, None])
        return [
            Reply(text, logprobs=dict(zip(self.rubric.words, row, strict=True)), tokens_in=len(prompt))
            for text, row, prompt in zip(likeliest, rows, prompts, strict=True)
        ]


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """For each word, the tokens a one-word answer may begin with: plain, capitalised, after a blank.

    Raises:
        SelectorError: a word is unknown to the tokenizer, or two begin with the same token.
    """
    owner: dict[int, str] = {}
    ids_by_word = [sorted(set(_first_tokens(tokenizer, word))) for word in words]
    for word, ids in zip(words, ids_by_word, strict=True):
        if not ids:
            raise SelectorError(f"the judge's tokenizer does not know the word {word!r} of the scale; choose another")
        for token in ids:
            if owner.setdefault(token, word) != word:
                raise SelectorError(
                    f"the words {owner[token]!r} and {word!r} of the scale begin with the same token of the judge's "
                    "tokenizer, so their probabilities cannot be separated; choose other words"
                )
    return ids_by_word


def _first_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> Iterator[int]:
    for spelling in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        for token in tokenizer(spelling, add_special_tokens=False)["input_ids"]:
            if str(tokenizer.decode([token])).strip():  # some tokenizers split a blank off
                if token != tokenizer.unk_token_id:
                    yield token
                break
