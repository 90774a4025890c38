"""Prefers samples by the length of their answers, a baseline that every quality score has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

from ostlight.models.batch import Batch
from ostlight.selection.metric_selector import MetricSelector


class Length(MetricSelector):
    """The samples with the longest (or shortest, or middling) answers, in characters of all trained turns, function
    calls as JSON.

    "Long Is More for Alignment" (arXiv 2402.04833) counts tokens; characters need no tokenizer and no model.
    """

    column: ClassVar[str] = "characters"

    def measure(self, batch: Batch) -> dict[str, Any]:
        return {"characters": [sum(len(t.text_with_calls) for t in s.turns if t.trained) for s in batch.samples]}
