"""Which kinds of sample a subset has nearly left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ostlight.selection.scores import Scores

FEWEST = 10
"""A kind of which fewer would be kept by chance may be missing by chance."""

SHARE = 0.25
"""Of what would be kept by chance; below, a kind counts as nearly left out."""


@dataclass(frozen=True, slots=True)
class Rare:
    """A tag's value, how many scored samples have it, and how many of these were kept."""

    tag: str
    value: str
    scored: int
    kept: int

    def __str__(self) -> str:
        return f"{self.tag}={self.value} ({self.kept:,} of {self.scored:,})"


def nearly_left_out(scores: Scores, rows: np.ndarray) -> list[Rare]:
    """Tag values of which ``rows`` keep less than a quarter of their share, the rarest first.

    A model forgets what its subset does not hold: a fifth chosen by utility may have two samples of a kind of question
    that is a seventh of the pool, because the proxy answers that kind well (docs/results/pools.md).
    """
    tags = scores.table["tags"].combine_chunks()
    if not len(rows) or not len(scores) or tags.null_count == len(tags):
        return []
    kept = np.zeros(len(scores), dtype=bool)
    kept[rows] = True
    ends = tags.offsets.to_numpy()
    inside = slice(int(ends[0]), int(ends[-1]))
    of_each = np.repeat(kept, np.diff(ends)).astype(np.int64)
    table = pa.table({"tag": tags.keys[inside], "value": tags.items[inside], "kept": of_each})
    counts = table.group_by(["tag", "value"]).aggregate([("kept", "sum"), ("kept", "count")]).to_pylist()
    chance = len(rows) / len(scores)
    rare = [Rare(count["tag"], count["value"], count["kept_count"], count["kept_sum"]) for count in counts]
    rare = [one for one in rare if one.scored * chance >= FEWEST and one.kept < SHARE * one.scored * chance]
    return sorted(rare, key=lambda one: (one.kept / one.scored, -one.scored, one.tag, one.value))
