"""Samples that two sets share: an anchor that is also trained on measures memory, not help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.progress import track

MAX_PAIRS_LISTED = 5
"""Pairs of ids that a message lists."""


class OverlapCheck:
    """Finds trusted samples among others that stream by: the same texts and the same images, whatever their ids are.

    Images are read only where the texts are those of an anchor.
    """

    def __init__(self, anchors: Sequence[Sample]) -> None:
        self._anchors = list(anchors)
        self._texts = {anchor.text_key() for anchor in anchors}

    def among(self, others: Iterable[Sample]) -> list[tuple[str, str]]:
        """Pairs of ids (anchor, other), in the order of ``others``. A sample whose images cannot be read is in none."""
        if not self._texts:
            return []
        pairs: list[tuple[str, str]] = []
        for other in others:
            if other.text_key() in self._texts:
                pairs += [(anchor, other.id) for anchor in self._ids.get(_content_key(other), ())]
        return pairs

    @cached_property
    def _ids(self) -> dict[str | None, list[str]]:
        """Ids of the anchors by what they hold."""
        ids: dict[str | None, list[str]] = {}
        for anchor in self._anchors:
            ids.setdefault(_content_key(anchor), []).append(anchor.id)
        ids.pop(None, None)
        return ids


def overlaps(anchors: Sequence[Sample], other: Pool) -> list[tuple[str, str]]:
    """Pairs of ids (anchor, other) of ``OverlapCheck``, in one pass over ``other``. Records that cannot be read are in
    no pair."""
    records = track(other.read(range(len(other))), "looking for anchors", len(other), "records")
    return OverlapCheck(anchors).among(read for _, read in records if isinstance(read, Sample))


def overlap_message(pairs: Sequence[tuple[str, str]], where: str) -> str:
    """Says how many anchors also occur in the pool or the test set, and names the first."""
    ids = ", ".join([f"{a} = {b}" for a, b in pairs[:MAX_PAIRS_LISTED]] + ["..."] * (len(pairs) > MAX_PAIRS_LISTED))
    anchors, records = (len({pair[side] for pair in pairs}) for side in (0, 1))
    among = f"{records:,} records" if records > 1 else "1 record"
    return f"{anchors:,} anchors also occur in the {where}, as {among} (anchor = record): {ids}"


def _content_key(sample: Sample) -> str | None:
    try:
        return sample.content_key()
    except BadRecord:
        return None
