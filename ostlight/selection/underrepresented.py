"""Finds tags that a subset nearly leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ostlight.data.record import MAX_TAG_CHARACTERS
from ostlight.selection.scores import OK, Scores

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
    seventh of the pool, because the proxy answers that type well (docs/measurements.md).
    """
    if not len(rows) or not len(scores):
        return []
    expected = f"count(*) * {len(rows)} / {len(scores)}"
    counts = scores.query(
        f"""
        SELECT tag, value, count(*) AS scored, count(kept.position) AS kept
        FROM (SELECT position, unnest(map_keys(tags)) AS tag, unnest(map_values(tags)) AS value
              FROM scores WHERE state = '{OK}')
        LEFT JOIN kept USING (position)
        WHERE length(value) <= {MAX_TAG_CHARACTERS}
        GROUP BY tag, value
        HAVING {expected} >= {MIN_EXPECTED} AND count(kept.position) < {MIN_SHARE} * {expected}
        """,
        kept=pa.table({"position": scores.positions[rows]}),
    )
    found = [UnderrepresentedTag(**row) for row in counts.to_pylist()]
    return sorted(found, key=lambda tag: (tag.kept / tag.scored, -tag.scored, tag.tag, tag.value))
