"""Samples that two sets share: an anchor that is also trained on measures memory, not help."""

from __future__ import annotations

from collections.abc import Sequence

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.progress import track


def overlaps(anchors: Sequence[Sample], other: Pool) -> list[tuple[str, str]]:
    """Pairs of ids (anchor, other) with the same texts and the same images, whatever their ids are.

    Streams over ``other``, and reads its images only where the texts are those of an anchor. Records that cannot be
    read are in no pair.
    """
    texts = {anchor.text_key() for anchor in anchors}
    ids: dict[str | None, list[str]] = {}
    for anchor in anchors:
        ids.setdefault(_content_key(anchor), []).append(anchor.id)
    ids.pop(None, None)
    pairs: list[tuple[str, str]] = []
    for _, sample in track(other.read(range(len(other))), "looking for anchors", len(other), "records"):
        if isinstance(sample, Sample) and sample.text_key() in texts:
            pairs += [(anchor, sample.id) for anchor in ids.get(_content_key(sample), ())]
    return pairs


def _content_key(sample: Sample) -> str | None:
    try:
        return sample.content_key()
    except BadRecord:
        return None
