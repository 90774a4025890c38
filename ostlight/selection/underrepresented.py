"""Finds tags that a subset nearly leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ostlight.selection.scores import Scores

MIN_EXPECTED = 10
"""Samples that a random subset would keep of a tag; a tag with fewer may be missing by chance."""

MIN_SHARE = 0.25
"""Of what a random subset would keep; a tag below it counts as underrepresented."""


@dataclass(frozen=True, slots=True)
class UnderrepresentedTag:
    """A tag's value, how many scored samples have it, and how many of these were kept."""

    tag: str
    value: str
    scored: int
    kept: int

    def __str__(self) -> str:
        return f"{self.tag}={self.value} ({self.kept:,} of {self.scored:,})"


def find_underrepresented(scores: Scores, rows: np.ndarray) -> list[UnderrepresentedTag]:
    """Tag values of which ``rows`` keep less than a quarter of their share, the rarest first.

    A model forgets what its subset lacks: a fifth chosen by utility may have two samples of a question type that is a
    seventh of the pool, because the proxy answers that type well (docs/results.md).
    """
    tags = scores.table["tags"].combine_chunks()
    if not len(rows) or not len(scores) or tags.null_count == len(tags):
        return []
    is_kept = np.zeros(len(scores), dtype=bool)
    is_kept[rows] = True
    offsets = tags.offsets.to_numpy()
    entries = slice(int(offsets[0]), int(offsets[-1]))
    kept = np.repeat(is_kept, np.diff(offsets)).astype(np.int64)
    table = pa.table({"tag": tags.keys[entries], "value": tags.items[entries], "kept": kept})
    counts = table.group_by(["tag", "value"]).aggregate([("kept", "sum"), ("kept", "count")]).to_pylist()
    found = []
    for count in counts:
        tag = UnderrepresentedTag(count["tag"], count["value"], count["kept_count"], count["kept_sum"])
        expected = tag.scored * len(rows) / len(scores)
        if expected >= MIN_EXPECTED and tag.kept < MIN_SHARE * expected:
            found.append(tag)
    return sorted(found, key=lambda tag: (tag.kept / tag.scored, -tag.scored, tag.tag, tag.value))
