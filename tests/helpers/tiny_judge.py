"""A tiny judge that knows a handful of samples by heart: DigitMath's proxy, taught to answer with JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ostlight.config.schema import Model
from ostlight.data.sample import Sample, Turn
from ostlight.digitmath.model import checkpoint
from ostlight.models.module import MultimodalModel
from ostlight_selectors.llm_judge.rubric import Rubric

RUBRIC = """
scale: [{word: good, value: 1}, {word: bad, value: 0}]
system: ""
user: "{question}\\n{answer}\\n{format}"
reply_format: "is it good or bad?"
score_format: "is it good or bad?"
"""


def taught(samples: Sequence[Sample], rubric: Rubric, folder: Path) -> dict[str, str]:
    """Saves a model that gives each sample the reply returned for it, with its score chosen by the sample's place."""
    model = MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")
    words = [("good", "right"), ("bad", "wrong")]
    replies = {}
    lessons = []
    for k, sample in enumerate(samples):
        word, reason = words[k % 2]
        replies[sample.id] = f'{{"reason": "{reason}", "score": "{word}"}}'
        asked = rubric.conversation(sample, one_word=False)
        turns = (*asked.turns, Turn("assistant", replies[sample.id], trained=True))
        lessons.append(replace(asked, turns=turns))
    batches = model.batches(lessons, 4096)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = sum(model.losses(batch).sum() for batch in batches) / len(lessons)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.003:
            break
    model.save(folder)
    return replies
