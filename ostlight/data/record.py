"""From one record as its file holds it to a ``Sample``, or to the reason why it is rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ostlight.data.formats.source import own_id
from ostlight.data.images import ImageRoot
from ostlight.data.layouts import LAYOUTS, Conversation, layout_of
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.errors import BadRecord

IMAGE_FIELDS = ("image", "images")
MEDIA_FIELDS = ("audio", "audios", "video", "videos")
NESTED_TAGS = ("tags", "meta")


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads the records of one file.

    Attributes:
        root: folder of their images.
        layout: a name of ``LAYOUTS``; ``None`` recognizes it by each record's fields.
        require_answer: whether a record without an assistant turn is rejected.
    """

    root: ImageRoot
    layout: str | None = None
    require_answer: bool = True

    def sample(self, record: Mapping[str, Any], id: str, position: int) -> Sample:
        """The record as a sample called ``id``; its images are checked when they are opened.

        Raises:
            BadRecord: the record cannot be used.
        """
        if record.get("id") not in (None, "") and own_id(record) is None:
            raise BadRecord.wrong_type("id", "text or a whole number", record["id"])
        for field in MEDIA_FIELDS:
            if record.get(field):
                detail = f"the record has {field!r}; only text and images are read"
                raise BadRecord("unsupported_media", detail, field)
        layout = layout_of(record) if self.layout is None else LAYOUTS[self.layout]
        if layout is None or layout.fields[0] not in record:
            wanted = self.layout or ", ".join(LAYOUTS)
            detail = f"no conversation (looked for: {wanted}) in the fields {', '.join(record)}"
            raise BadRecord("bad_field", detail[:300])
        conversation = layout.read(record, self.require_answer)
        _check_answers(conversation.turns, self.require_answer)
        turns = _with_placeholders(conversation)
        several = len(conversation.images) > 1
        images = tuple(
            self.root.find(image, f"images[{n}]" if several else "images")
            for n, image in enumerate(conversation.images)
        )
        tags = _tags(record, layout.fields)
        _check_unicode(id, *(turn.text for turn in turns), *tags, *tags.values())
        return Sample(id, turns, images, tags, position)


def _check_answers(turns: list[Turn], required: bool) -> None:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if required and not answers:
        raise BadRecord("no_answer", "no assistant turn, so there is nothing to learn from it")
    if required and not any(turn.trained for turn in turns):
        raise BadRecord("no_answer", "every assistant turn has loss weight 0, so there is nothing to learn from it")
    if not turns:
        raise BadRecord("bad_field", "the conversation has no turn")
    for turn in answers:
        if turn.trained and not turn.text.strip():
            raise BadRecord("empty_answer", f"assistant turn {answers.index(turn) + 1} of {len(answers)} is empty")


def _check_unicode(*texts: str) -> None:
    """Refuse a lone surrogate (half a character), which JSON can hold but no tokenizer or file takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            detail = f"half a character ({text[error.start]!a}) in {text[:40]!a}; write the text again as UTF-8"
            raise BadRecord("bad_field", detail) from error


def _with_placeholders(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns with one placeholder for each image; where there is none, all come before the first user turn."""
    turns, count = conversation.turns, len(conversation.images)
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if placeholders == count:
        return tuple(turns)
    first = next((k for k, turn in enumerate(turns) if turn.role == "user"), None)
    if placeholders or first is None:
        detail = (
            f"{placeholders} {IMAGE_PLACEHOLDER} placeholders but {count} images; write one for each, or none at all"
        )
        raise BadRecord("image_count", detail, "images")
    question = Turn("user", f"{IMAGE_PLACEHOLDER}\n" * count + turns[first].text, turns[first].trained)
    return (*turns[:first], question, *turns[first + 1 :])


def _tags(record: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, str]:
    """All other scalar fields as text; a field of the record itself wins over one of its nested tags and metadata."""
    own = {name: value for name, value in record.items() if name not in ("id", *used, *IMAGE_FIELDS)}
    tags: dict[str, str] = {}
    for fields in (*(record.get(name) for name in NESTED_TAGS), own):
        if isinstance(fields, dict):
            tags |= {name: _as_text(value) for name, value in fields.items() if isinstance(value, str | int | float)}
    return tags


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
