"""How likely the expected answers are, and how close free text comes to them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torchmetrics.functional.text import rouge_score, squad

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.evaluation.share import ALONE, Share
from ostlight.models.batch import by_token_budget
from ostlight.models.encoding.encoder import Encoded
from ostlight.models.module import MultimodalModel
from ostlight.progress import phase


def expected_answer_losses(
    model: MultimodalModel, samples: Sequence[Sample], tokens_per_batch: int, share: Share = ALONE
) -> list[float | None]:
    """Returns the mean cross-entropy over the tokens of each sample's expected answers, in nats; its exponential is the
    perplexity. ``None`` for a sample without an answer, one whose answer does not fit into ``max_length`` or cannot be
    encoded, or a loss that is not finite.

    Args:
        share: of the batches that this process computes; every rank returns all losses.
    """
    encoded: dict[int, Encoded] = {}
    for i, sample in enumerate(samples):
        try:
            whole = model.encoder.encode(sample)
        except BadRecord:  # the prompt alone could be encoded: there is no answer, or no room for it
            continue
        if not whole.answer_cut:
            encoded[i] = whole
    rows = list(encoded)
    losses: dict[int, float | None] = {}
    with phase("loss of the expected answers", -(-len(rows) // share.ranks), "answers") as done, torch.no_grad():
        for group in share.of(by_token_budget([len(encoded[i]) for i in rows], tokens_per_batch)):
            chosen = [rows[k] for k in group]
            batch = model.collator.batch([samples[i] for i in chosen], [encoded[i] for i in chosen]).to(model.device)
            for i, loss in zip(chosen, model.losses(batch).tolist(), strict=True):
                losses[i] = loss if torch.isfinite(torch.tensor(loss)) else None
            done.advance(len(chosen))
    losses = share.gathered(losses)
    return [losses.get(i) for i in range(len(samples))]


def token_f1(given: str, expected: str) -> float:
    """Returns the F1 of the words that two texts share, without case, articles and punctuation, as SQuAD has it
    (Rajpurkar et al. 2016, arXiv 1606.05250), from 0 to 1."""
    prediction = {"prediction_text": given, "id": "0"}
    found = squad([prediction], [{"answers": {"text": [expected], "answer_start": [0]}, "id": "0"}])
    return float(found["f1"]) / 100


def rouge_l(given: str, expected: str) -> float:
    """Returns the F-measure of the longest common subsequence of words, ROUGE-L (Lin 2004), from 0 to 1.

    Words of any script, without case and punctuation; Chinese and Japanese are taken character by character.
    """
    scores = rouge_score(given, expected, rouge_keys="rougeL", normalizer=_words, tokenizer=str.split)
    return float(scores["rougeL_fmeasure"])


WITHOUT_SPACES = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
"""Kana and Chinese characters."""


def _words(text: str) -> str:
    return WITHOUT_SPACES.sub(r" \1 ", re.sub(r"[\W_]+", " ", text.lower()))
