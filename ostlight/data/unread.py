"""Fields that look like images, boxes, audio or video and are not read: named, so that none is lost unseen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ostlight.data.layouts import LAYOUTS, layout_of
from ostlight.data.mapping import columns_used
from ostlight.data.pool import Pool
from ostlight.data.record import FILE_NAMES, IMAGE_FIELDS, MEDIA_FIELDS, RecordReader
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord

MAX_RECORDS_READ = 2_000
"""Records that are looked at, spread over the pool."""

_MEDIA_FILE = re.compile(
    r"\.(png|jpe?g|gif|webp|bmp|tiff?|avif|heic|svg|mp4|webm|avi|mov|mkv|wav|mp3|flac|ogg|m4a|pdf)$", re.IGNORECASE
)
_SHAPES = re.compile(r"object|bbox|box(es)?$|mask|segment|polygon|keypoint|region", re.IGNORECASE)
_MARK = re.compile(r"<\|?(?:img|video|audio|image[ _]?\d+|vision_start|image_pad)\|?>")


@dataclass(frozen=True)
class UnreadMedia:
    """What looks like media and is not read.

    Attributes:
        records: that were looked at.
        fields: names of fields, and marks in texts (``<video>``), with the number of records that have them.
    """

    records: int
    fields: Counter[str]

    def __str__(self) -> str:
        listed = ", ".join(f"{name} ({count:,})" for name, count in self.fields.most_common(8))
        return f"of {self.records:,} records looked at, these hold what looks like media and is not read: {listed}"


def unread_media(pool: Pool) -> UnreadMedia:
    """Returns the fields and marks of usable records that look like media and are not read."""
    positions = range(0, len(pool), max(1, len(pool) // MAX_RECORDS_READ))[:MAX_RECORDS_READ]
    fields: Counter[str] = Counter()
    for position, sample in pool.read(positions):
        if not isinstance(sample, Sample):
            continue
        n, k = pool.source_and_index(position)
        try:
            record = pool.sources[n].record(k)
        except BadRecord:
            continue
        fields.update(set(_unread_fields(record, pool.readers[n])))
        fields.update({mark for turn in sample.turns for mark in _MARK.findall(turn.text)})
    return UnreadMedia(len(positions), fields)


def _unread_fields(record: Mapping[str, Any], reader: RecordReader) -> Iterator[str]:
    used = {*IMAGE_FIELDS, *MEDIA_FIELDS}
    layout = LAYOUTS.get(reader.layout or "") or layout_of(record)
    if reader.columns is not None:
        used |= set(columns_used(reader.columns))
    elif layout is not None:
        used |= set(layout.fields)
    if reader.names_images:
        used |= set(FILE_NAMES)
    for name, value in record.items():
        if name not in used and _looks_like_media(name, value):
            yield name
    both = [record.get(name) for name in IMAGE_FIELDS]
    if reader.columns is None and both[0] and both[1] and both[0] not in (both[1], *_listed(both[1])):
        yield "image beside images"


def _looks_like_media(name: str, value: Any) -> bool:
    if isinstance(value, bytes):
        return bool(value)
    if isinstance(value, str):
        return value.startswith(("data:image/", "data:video/", "data:audio/")) or bool(_MEDIA_FILE.search(value[-10:]))
    if isinstance(value, list | dict) and value and _SHAPES.search(name):
        return True
    if isinstance(value, dict):
        return any(_looks_like_media(name, value.get(key)) for key in ("bytes", "path", "url"))
    return isinstance(value, list) and any(_looks_like_media(name, entry) for entry in value[:3])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
