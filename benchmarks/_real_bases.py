"""Small LLaVA models for a pool of real images, trained from scratch on its ``base`` records."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _digitmath_models import ModelSize, llava_model, llava_processor
from _digitmath_tokenizer import build_tokenizer
from _real_pools import Cut
from torch import Tensor
from train_digitmath_base import fit

from ostlight.config.schema import Evaluation, Model
from ostlight.data.pool import Pool
from ostlight.evaluation.evaluate import evaluate_model, read_questions
from ostlight.models.module import MultimodalModel
from ostlight.training.steps import EncodedPool

MAX_NEW_TOKENS = 8
"""Longer than any right answer; a longer one is wrong anyway."""


@dataclass(frozen=True)
class Recipe:
    """How the base models of a pool are made.

    Attributes:
        sizes: by name (``proxy``, ``target``).
        by: the tag to report accuracies by.
        steps, batch_size, lr: of AdamW with a cosine; the same for both.
    """

    sizes: Mapping[str, ModelSize]
    by: str
    steps: int
    batch_size: int = 64
    lr: float = 2e-3


def vocabulary_of(cut: Cut) -> str:
    """The words of all questions and answers but the test's, without punctuation."""
    said = [
        text
        for part, records in cut.parts.items()
        if part != "test"
        for r in records
        for text in (r.question, r.answer)
    ]
    return " ".join(sorted({word.strip(".,:;!?").lower() for text in set(said) for word in text.split()}))


def train_bases(folder: Path, recipe: Recipe, words: str, seed: int) -> dict[str, dict]:
    """Trains every model on ``base.parquet`` and saves it as ``folder/NAME``, with what became of it.

    Returns:
        By name: parameters, losses, seconds and accuracies on the development split.
    """
    found = {}
    for name, size in recipe.sizes.items():
        torch.manual_seed(seed)
        home = folder / name
        tokenizer = build_tokenizer(words=words)
        llava_model(size, tokenizer).save_pretrained(home)
        llava_processor(size, tokenizer).save_pretrained(home)
        model = MultimodalModel.load(Model(path=str(home)), name)
        pool, began = Pool.open(folder / "base.parquet"), time.perf_counter()
        data = EncodedPool(pool, range(len(pool)), model.encoder)
        losses = fit(model.model, batches(model, data, recipe.batch_size, seed), recipe.steps, recipe.lr)
        model.model.eval()
        model.save(home)
        dev = read_questions(Pool.open(folder / "dev.parquet"), model, Evaluation())
        accuracy = evaluate_model(model, dev, Evaluation(max_new_tokens=MAX_NEW_TOKENS, by=recipe.by, batch_size=200))
        found[name] = {
            "parameters": sum(p.numel() for p in model.model.parameters()),
            "samples": recipe.steps * recipe.batch_size,
            "seconds": round(time.perf_counter() - began, 1),
            "last_losses": round(float(np.mean(losses[-20:])), 4),
            "dev_accuracy": {group: round(value, 3) for group, value in accuracy.accuracy.items()},
        }
    (folder / "bases.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def batches(model: MultimodalModel, data: EncodedPool, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Pass after pass in a fresh order, every batch full."""
    rng, queue = np.random.default_rng(seed), np.empty(0, dtype=int)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(len(data))])
        samples, encoded = data.get(queue[:size])
        queue = queue[size:]
        batch = model.collator.batch(samples, encoded)
        yield {**batch.inputs, "labels": batch.labels}
