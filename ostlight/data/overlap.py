"""Samples that stand in two sets at once: an anchor that is also trained on measures memory, not help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord


def overlaps(anchors: Pool | Sequence[Sample], other: Pool) -> list[tuple[str, str]]:
    """Pairs of ids (anchor, other) with the same texts and the same images, whatever they are called.

    Streams over ``other`` and holds only the anchors. Images are read only where the texts agree, and compared by
    their bytes. Records that cannot be read are nobody's equal. Two samples with one id and different content are not
    a pair: ids are unique in their own pool only.
    """
    by_text: dict[str, list[Sample]] = {}
    for anchor in _usable(anchors):
        by_text.setdefault(anchor.text_key(), []).append(anchor)
    contents: dict[str, dict[str, list[str]]] = {}
    pairs: list[tuple[str, str]] = []
    for sample in _usable(other):
        text = sample.text_key()
        if text not in by_text:
            continue
        if text not in contents:
            contents[text] = _by_content(by_text[text])
        content = _content(sample)
        if content is not None:
            pairs += [(anchor, sample.id) for anchor in contents[text].get(content, ())]
    return pairs


def _usable(samples: Pool | Sequence[Sample]) -> Iterable[Sample]:
    if not isinstance(samples, Pool):
        return samples
    return (sample for _, sample in samples.read(range(len(samples))) if isinstance(sample, Sample))


def _by_content(samples: list[Sample]) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for sample in samples:
        content = _content(sample)
        if content is not None:
            ids.setdefault(content, []).append(sample.id)
    return ids


def _content(sample: Sample) -> str | None:
    try:
        return sample.content_key()
    except BadRecord:
        return None
