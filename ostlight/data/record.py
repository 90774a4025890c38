"""From one record as its file holds it to a Sample, or to the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ostlight.data.formats.source import given_id
from ostlight.data.images import ImageRoot
from ostlight.data.layouts import LAYOUTS, layout_of
from ostlight.data.layouts.draft import Draft
from ostlight.data.layouts.fields import wrong_type
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn
from ostlight.errors import BadRecord

IMAGE_FIELDS = ("image", "images")
MEDIA_FIELDS = ("audio", "audios", "video", "videos")
NESTED_TAGS = ("tags", "meta")


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of a pool are read.

    Attributes:
        root: where their images lie.
        shape: a name of ``LAYOUTS``; ``None`` tells by each record's fields.
        require_answer: whether a record without an assistant turn is set aside.
    """

    root: ImageRoot
    shape: str | None = None
    require_answer: bool = True


def sample_of(record: Mapping[str, Any], *, name: str, position: int, reading: Reading) -> Sample:
    """The record as a sample called ``name``.

    Raises:
        BadRecord: any reason that concerns the record itself; an image's content is first looked at when opened.
    """
    if record.get("id") not in (None, "") and given_id(record) is None:
        raise wrong_type("id", "text or a whole number", record["id"])
    for field in MEDIA_FIELDS:
        if record.get(field):
            detail = f"the record has {field!r}; only text and images are read"
            raise BadRecord("unsupported_media", detail, field)
    shape = layout_of(record) if reading.shape is None else LAYOUTS[reading.shape]
    if shape is None or not shape.matches(record):
        wanted = reading.shape or ", ".join(LAYOUTS)
        raise BadRecord("bad_field", f"no conversation (looked for: {wanted}) in the fields {', '.join(record)}"[:300])
    draft: Draft = shape.read(record, reading.require_answer)
    _check_answers(draft.turns, reading.require_answer)
    turns = _with_placeholders(draft)
    images = tuple(_images(draft, reading.root))
    tags = _tags(record, shape.FIELDS)
    _check_unicode(name, *(turn.text for turn in turns), *tags, *tags.values())
    return Sample(name, turns, images, tags, position)


def _check_answers(turns: list[Turn], required: bool) -> None:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if required and not answers:
        raise BadRecord("no_answer", "no assistant turn, so there is nothing to learn from it")
    if required and not any(turn.trained for turn in turns):
        raise BadRecord("no_answer", "every assistant turn has loss weight 0, so there is nothing to learn from it")
    if not turns:
        raise BadRecord("bad_field", "the conversation has no turn at all")
    for turn in answers:
        if turn.trained and not turn.text.strip():
            raise BadRecord("empty_answer", f"assistant turn {answers.index(turn) + 1} of {len(answers)} is empty")


def _check_unicode(*texts: str) -> None:
    """Refuse half a character (a lone surrogate), which JSON can spell but no tokenizer or file takes."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                detail = f"half a character ({text[error.start]!a}) in {text[:40]!a}; write the text anew as UTF-8"
                raise BadRecord("bad_field", detail) from error


def _with_placeholders(draft: Draft) -> tuple[Turn, ...]:
    """The turns with one mark an image; images without any mark are put before the first user turn."""
    marks = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in draft.turns)
    count = len(draft.images)
    if marks == count:
        return tuple(draft.turns)
    first = next((k for k, turn in enumerate(draft.turns) if turn.role == "user"), None)
    if marks or first is None:
        detail = f"{marks} {IMAGE_PLACEHOLDER} marks but {count} images; one mark an image, or none at all"
        raise BadRecord("image_count", detail, "images")
    marked = Turn("user", f"{IMAGE_PLACEHOLDER}\n" * count + draft.turns[first].text, draft.turns[first].trained)
    return (*draft.turns[:first], marked, *draft.turns[first + 1 :])


def _images(draft: Draft, root: ImageRoot) -> list[ImageRef]:
    many = len(draft.images) > 1
    return [root.find(said, f"images[{n}]" if many else "images") for n, said in enumerate(draft.images)]


def _tags(record: Mapping[str, Any], taken: frozenset[str]) -> dict[str, str]:
    """All other scalar fields as text; nested tags and metadata by their keys, behind the record's own."""
    tags: dict[str, str] = {}
    for nested in NESTED_TAGS:
        inner = record.get(nested)
        if isinstance(inner, dict):
            tags.update((key, _as_text(value)) for key, value in inner.items() if _is_scalar(value))
    for key, value in record.items():
        if key != "id" and key not in taken and key not in IMAGE_FIELDS and _is_scalar(value):
            tags[key] = _as_text(value)
    return tags


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
