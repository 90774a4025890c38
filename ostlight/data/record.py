"""From one record as its file holds it to a ``Sample``, or to the reason why it is rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ostlight.config.budget import SOURCE
from ostlight.config.schema import Columns
from ostlight.data.formats.source import is_no_id, own_id
from ostlight.data.images import ImageRoot
from ostlight.data.layouts import LAYOUTS, Conversation, Layout, layout_of
from ostlight.data.mapping import LIKELY, suggestion, with_columns
from ostlight.data.numbers import whole
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.data.turns import LOSS_FLAGS, read_tools
from ostlight.data.video import Frame, with_frames
from ostlight.errors import BadRecord

IMAGE_FIELDS = ("image", "images")
MEDIA_FIELDS = ("audio", "audios", "video", "videos")
NESTED_TAGS = ("tags", "meta")
_RECORD_FLAGS = frozenset(flag + end for flag in LOSS_FLAGS for end in ("", "s"))
_WHOLE_RECORD_FLAGS = frozenset(LOSS_FLAGS) - {"loss", "weight"}
"""Flags that mean nothing else beside the turns; ``loss`` and ``weight`` may be what somebody measured."""
PARTS_OF_QUESTIONS = (*LIKELY["choices"], "context", "passage", "hint")
FILE_NAMES = ("file_name", "file_names")
TOOL_FIELDS = ("tools", "functions")
MAX_TAG_CHARACTERS = 256
"""A field of a longer text is no tag: nothing is grouped by it, and every stage would carry it along."""
BOX_PLACEHOLDERS = ("<bbox>", "<ref-object>")
"""Stand in a text for what the field ``objects`` holds (ms-swift); not read."""


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads the records of one file.

    Attributes:
        root: folder of their images.
        layout: a name of ``LAYOUTS``; ``None`` recognizes it by each record's fields.
        require_answer: whether a record without an assistant turn is rejected.
        columns: a configuration's mapping; ``None`` takes the fields of the layouts.
        names_images: whether ``file_name`` names the image, as in the ``metadata`` file of a folder of images.
        source: the tag ``source`` of all records, in the place of their own; ``None`` leaves theirs.
        characters: that all texts of a record may have.
        frames: images that stand for a video; ``None`` rejects records with videos.
    """

    root: ImageRoot
    layout: str | None = None
    require_answer: bool = True
    columns: Columns | None = None
    names_images: bool = False
    source: str | None = None
    characters: int = 2_000_000
    frames: int | None = None

    def sample(self, record: Mapping[str, Any], id: str, position: int) -> Sample:
        """The record as a sample called ``id``; its images are checked when they are opened.

        Raises:
            BadRecord: the record cannot be used.
        """
        if not is_no_id(record.get("id")) and own_id(record) is None:
            raise BadRecord.wrong_type("id", "text or a number", record["id"])
        if self.frames is not None:
            record = with_frames(record, self.frames)
        for field in MEDIA_FIELDS:
            if record.get(field):
                detail = f"the record has {field!r}; only text and images are read"
                raise BadRecord("unsupported_media", detail, field)
        for name in sorted(_RECORD_FLAGS & record.keys()):
            if isinstance(record.get(name), list | dict):
                detail = f"{name!r} beside the turns is not read; write the flag into each turn, as one of "
                raise BadRecord("bad_field", detail + ", ".join(LOSS_FLAGS), name)
            if name in _WHOLE_RECORD_FLAGS and isinstance(record[name], bool | int | float) and not record[name]:
                detail = f"{name!r} of the whole record is {record[name]}, so there is nothing to learn from it"
                raise BadRecord("no_answer", detail, name)
        record = self.canonical(record)
        layout = self._layout(record)
        conversation = layout.read(record, self.require_answer)
        _check_answers(conversation.turns, self.require_answer)
        if record.get("objects") and any(mark in turn.text for turn in conversation.turns for mark in BOX_PLACEHOLDERS):
            detail = (
                f"{' and '.join(BOX_PLACEHOLDERS)} stand for what 'objects' holds, which is not read; write it into "
            )
            raise BadRecord("unsupported_media", detail + "the text", "objects")
        turns = _with_placeholders(conversation)
        several = len(conversation.images) > 1
        images = tuple(
            self.root.find_frame(image)
            if isinstance(image, Frame)
            else self.root.find(image, f"images[{n}]" if several else "images")
            for n, image in enumerate(conversation.images)
        )
        tools = next((tools for name in TOOL_FIELDS if (tools := read_tools(record.get(name)))), ())
        tags = _tags(record, (*layout.fields, *TOOL_FIELDS) if tools else layout.fields)
        if self.source is not None:
            tags[SOURCE] = self.source
        _check_length(turns, tags, self.characters)
        _check_unicode(id, *(turn.text for turn in turns), *tags, *tags.values())
        return Sample(id, turns, images, tags, position, tools)

    def canonical(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with its conversation and images under the names that the layouts know.

        Raises:
            BadRecord: a mapped column holds what it cannot.
        """
        is_mapped = self.columns is not None and self.columns.images is not None
        if self.names_images and not (is_mapped or record.get("image") or record.get("images")):
            names = record.get("file_names") or record.get("file_name")
            record = {**{k: v for k, v in record.items() if k not in FILE_NAMES}, "images": names}
        return record if self.columns is None else with_columns(record, self.columns)

    def _layout(self, record: Mapping[str, Any]) -> Layout:
        if self.columns is not None:
            return LAYOUTS["messages" if self.columns.messages is not None else "question"]
        layout = layout_of(record) if self.layout is None else LAYOUTS[self.layout]
        if layout is None or layout.fields[0] not in record:
            wanted = self.layout or ", ".join(LAYOUTS)
            detail = f"no conversation (looked for: {wanted}) in the fields {', '.join(record)}"
            raise BadRecord("bad_field", f"{detail[:300]}; map them, for example {suggestion(record)}")
        if layout.name == "question" and isinstance(record.get("answer"), int | float):
            detail = f"'answer' is the number {record['answer']}; if it is the answer or the number of a choice, set "
            raise BadRecord("bad_field", detail + suggestion(record), "answer")
        if layout.name in ("question", "prompt"):
            self._refuse_unread_question(record, layout)
        return layout

    def _refuse_unread_question(self, record: Mapping[str, Any], layout: Layout) -> None:
        """Raises:
        BadRecord: the question has choices or a context in fields of their own, which no layout reads.
        """
        unread = next((name for name in PARTS_OF_QUESTIONS if record.get(name) not in (None, "", [], {})), None)
        if unread is not None:
            question, answer = ("prompt", "completion") if layout.name == "prompt" else layout.fields
            is_choices = unread in LIKELY["choices"]
            with_it = f"{question}, choices: {unread}" if is_choices else f"[{unread}, {question}]"
            detail = (
                f"{unread!r} beside {question!r} is not read; to have it in the question, set columns: {{question: "
                f"{with_it}, answer: {answer}}}; to leave it out, columns: {{question: {question}, answer: {answer}}}"
            )
            raise BadRecord("bad_field", detail, unread)


def _check_answers(turns: list[Turn], required: bool) -> None:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if required and not answers:
        raise BadRecord("no_answer", "no assistant turn, so there is nothing to learn from it")
    if required and not any(turn.trained for turn in turns):
        raise BadRecord("no_answer", "every assistant turn has loss weight 0, so there is nothing to learn from it")
    if not turns:
        raise BadRecord("bad_field", "the conversation has no turn")
    for turn in answers:
        if turn.trained and not turn.text.strip() and not turn.tool_calls:
            raise BadRecord("empty_answer", f"assistant turn {answers.index(turn) + 1} of {len(answers)} is empty")


def _check_length(turns: tuple[Turn, ...], tags: dict[str, str], limit: int) -> None:
    length = sum(len(turn.text) for turn in turns) + sum(map(len, tags.values()))
    if length > limit:
        detail = (
            f"its texts have {length:,} characters, the limit is {limit:,} (limits.characters); raise it or split it"
        )
        raise BadRecord("text_too_long", detail)


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
    question = replace(turns[first], text=f"{IMAGE_PLACEHOLDER}\n" * count + turns[first].text)
    return (*turns[:first], question, *turns[first + 1 :])


def _tags(record: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, str]:
    """All other scalar fields as text of at most ``MAX_TAG_CHARACTERS``; a field of the record itself wins over one of
    its nested tags and metadata. Empty texts and NaN are how files without nulls spell a missing value."""
    own = {name: value for name, value in record.items() if name not in ("id", *used, *IMAGE_FIELDS)}
    tags: dict[str, str] = {}
    for fields in (*(record.get(name) for name in NESTED_TAGS), own):
        if isinstance(fields, dict):
            there = {k: v for k, v in fields.items() if isinstance(v, str | int | float) and v != "" and v == v}
            tags |= {name: _as_text(value) for name, value in there.items()}
    return {name: value for name, value in tags.items() if len(value) <= MAX_TAG_CHARACTERS}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(whole(value))
