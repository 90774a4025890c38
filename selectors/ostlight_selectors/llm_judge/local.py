"""A judge loaded in this process: next-token probabilities of the scale's words, or generated JSON, in batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from ostlight.config.schema import Evaluation, Model
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.evaluation.generate import generate_answers
from ostlight.models.batch import by_token_budget
from ostlight.models.encode import Encoded
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel
from ostlight.selection.usage import Usage
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.reply import Judgement, Reply, judgement
from ostlight_selectors.llm_judge.rubric import Rubric

Outcome = Judgement | BadRecord
DEFAULT_MAX_TOKENS = 512
"""Tokens of a reply if ``max_tokens`` is not set."""


class LocalJudge:
    """Judges with a Hugging Face model.

    Args:
        options: ``model`` is its folder or hub name.
        rubric: whose words are the scale.
        usage: grows by tokens and FLOPs.

    Raises:
        OstlightError: the model cannot be loaded.
        SelectorError: two words of the scale begin with the same token.
    """

    def __init__(self, options: JudgeOptions, rubric: Rubric, usage: Usage) -> None:
        settings = Model(options.model, options.trust_remote_code, options.dtype, options.max_length)
        self.model = MultimodalModel.load(settings, "selector.options.model")
        self.options, self.rubric, self.usage = options, rubric, usage
        self.mode = "reply" if options.mode == "reply" else "logprobs"
        self.word_ids = word_ids(self.model.encoder.tokenizer, rubric.words) if self.mode == "logprobs" else []
        self._flops_per_token = 0.0

    def judge(self, samples: Sequence[Sample], device: torch.device) -> list[Outcome]:
        """A judgement of each sample, or why it has none."""
        if self.model.device != device:
            self.model.to(device)
        unusable: dict[int, tuple[str, str]] = {}
        outcomes: dict[int, Outcome] = {}
        left = list(range(len(samples)))
        for _ in range(1 + (self.options.max_reasks if self.mode == "reply" else 0)):
            replies = self._replies([samples[i] for i in left], [unusable.get(i) for i in left])
            for i, reply in zip(left, replies, strict=True):
                outcomes[i] = self._outcome(reply)
                if isinstance(reply, Reply):
                    unusable[i] = (reply.text, "it holds no JSON object with a score on the scale")
            left = [i for i in left if _unparsable(outcomes[i])]
            if not left:
                break
        return [outcomes[i] for i in range(len(samples))]

    def _outcome(self, reply: Reply | BadRecord) -> Outcome:
        if isinstance(reply, BadRecord):
            return reply
        try:
            return judgement(reply, self.rubric, self.mode, self.options.min_mass)
        except BadRecord as bad:
            return bad

    def _replies(
        self, samples: Sequence[Sample], unusable: Sequence[tuple[str, str] | None]
    ) -> list[Reply | BadRecord]:
        replies: list[Reply | BadRecord | None] = [None] * len(samples)
        asked: dict[int, tuple[Sample, Encoded]] = {}
        for i, (sample, last) in enumerate(zip(samples, unusable, strict=True)):
            conversation = self.rubric.conversation(sample, one_word=self.mode == "logprobs", unusable=last)
            try:
                asked[i] = (conversation, self._encoded(conversation))
            except BadRecord as bad:
                replies[i] = bad
        places = list(asked)
        # Generated tokens count towards the budget, since they are attended to as well.
        room = (self.options.max_tokens or DEFAULT_MAX_TOKENS) if self.mode == "reply" else 0
        lengths = [len(asked[i][1]) + room for i in places]
        for group in by_token_budget(lengths, self.options.tokens_per_batch):
            chosen = [places[k] for k in group]
            conversations, prompts = [asked[i][0] for i in chosen], [asked[i][1] for i in chosen]
            for i, reply in zip(chosen, self._answers(conversations, prompts), strict=True):
                replies[i] = reply
        return [reply for reply in replies if reply is not None]

    def _encoded(self, conversation: Sample) -> Encoded:
        prompt = self.model.encoder.encode_prompt(conversation)
        if len(prompt) > self.options.max_length:
            detail = f"the judge's prompt has {len(prompt)} tokens, the limit is {self.options.max_length} (max_length)"
            raise BadRecord("judge_prompt_too_long", detail)
        return prompt

    def _answers(self, conversations: list[Sample], prompts: list[Encoded]) -> list[Reply]:
        """One batch; its operations are counted on the first one and scaled by tokens afterwards."""
        answer = self._probabilities if self.mode == "logprobs" else self._generated
        counter = FlopCounter()
        with torch.no_grad(), nullcontext() if self._flops_per_token else counter:
            replies = answer(conversations, prompts)
        tokens_in, tokens_out = sum(r.tokens_in for r in replies), sum(r.tokens_out for r in replies)
        if not self._flops_per_token:
            self._flops_per_token = counter.total / (tokens_in + tokens_out)
        flops = self._flops_per_token * (tokens_in + tokens_out)
        self.usage.add(tokens_in=tokens_in, tokens_out=tokens_out, flops=flops)
        return replies

    def _probabilities(self, conversations: list[Sample], prompts: list[Encoded]) -> list[Reply]:
        # Padded on the left, every prompt ends, and its answer begins, in the last column.
        batch = replace(self.model.collator, side="left").batch(conversations, prompts).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        last = {"logits_to_keep": 1} if self._keeps_last else {}
        logits = self.model.model(**inputs, use_cache=False, **last).logits[:, -1]
        logprobs = logits.float().log_softmax(-1)
        columns = [logprobs[:, ids].logsumexp(-1) for ids in self.word_ids]
        rows = torch.stack(columns, 1).tolist()
        likeliest = self.model.encoder.tokenizer.batch_decode(logprobs.argmax(-1)[:, None])
        return [
            Reply(text, logprobs=dict(zip(self.rubric.words, row, strict=True)), tokens_in=len(prompt))
            for text, row, prompt in zip(likeliest, rows, prompts, strict=True)
        ]

    @property
    def _keeps_last(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.model.forward).parameters

    def _generated(self, conversations: list[Sample], prompts: list[Encoded]) -> list[Reply]:
        limit = self.options.max_tokens or DEFAULT_MAX_TOKENS
        settings = Evaluation(max_new_tokens=limit, batch_size=len(prompts))
        texts = generate_answers(self.model, conversations, settings, prompts)
        count = self.model.encoder.tokenizer
        lengths = [len(count(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return [
            Reply(text, finish="length" if n >= limit else "stop", tokens_in=len(prompt), tokens_out=n)
            for text, n, prompt in zip(texts, lengths, prompts, strict=True)
        ]


def _unparsable(outcome: Outcome) -> bool:
    return isinstance(outcome, BadRecord) and outcome.reason == "reply_unparsable"


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """For each word, the tokens an answer that says it may begin with: plain, capitalised, behind a blank.

    Raises:
        SelectorError: a word is unknown to the tokenizer, or two begin with the same token.
    """
    found = [sorted(set(_first_tokens(tokenizer, word))) for word in words]
    for word, ids in zip(words, found, strict=True):
        if not ids:
            raise SelectorError(f"the judge's tokenizer does not know the word {word!r} of the scale; choose another")
    owner: dict[int, str] = {}
    for word, ids in zip(words, found, strict=True):
        for token in ids:
            if token in owner:
                raise SelectorError(
                    f"the words {owner[token]!r} and {word!r} of the scale begin with the same token of the judge's "
                    "tokenizer, so their probabilities cannot be separated; choose other words, or mode=reply"
                )
            owner[token] = word
    return found


def _first_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> Iterator[int]:
    for spelling in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        for token in tokenizer(spelling, add_special_tokens=False)["input_ids"]:
            if str(tokenizer.decode([token])).strip():  # some tokenizers split a blank off
                if token != tokenizer.unk_token_id:
                    yield token
                break
