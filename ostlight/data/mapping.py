"""A table's own columns as a question, an answer and images, by the mapping that a configuration gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ostlight.config.schema import Columns
from ostlight.data.turns import flat_images
from ostlight.errors import BadRecord, DataError

LIKELY: dict[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt", "instruction", "input", "problem", "user", "human"),
    "answer": (
        *("answer", "response", "output", "completion", "solution", "target", "label", "caption", "text", "txt"),
        *("assistant", "gpt", "chosen"),
    ),
    "images": ("images", "image", "image_path", "img", "picture", "file_name", "jpg", "png"),
    "choices": ("choices", "options"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
}
"""Names that columns often have, by what they hold; a suggestion, nothing is read by them."""


def columns_used(columns: Columns) -> list[str]:
    """The column names that a mapping mentions, in its order."""
    return [name for field in fields(columns) for name in _names(getattr(columns, field.name))]


def with_columns(record: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The record with the fields ``question``, ``answer``, ``images``, ... filled from the columns that are mapped.

    Texts of several columns are joined by newlines, images in their order. Numbers become text. With ``choices`` the
    question gets one line for each (``A. ...``), and an answer that is a number names one by its letter. Columns that
    are not mapped stay: without ``images``, those of the record's own ``images`` or ``image``.

    Raises:
        BadRecord: ``bad_field`` where a column holds no text, or an answer names no choice.
    """
    mapped = {name: value for name, value in record.items() if name not in columns_used(columns)}
    if (system := _texts(record, columns.system)) is not None:
        mapped["system"] = system
    if columns.images is not None:
        mapped.pop("image", None)
        mapped["images"] = [image for name in _names(columns.images) for image in flat_images(_value(record, name))]
    if columns.messages is not None:
        return {**mapped, "messages": _value(record, columns.messages)}
    choices = [choice for name in _names(columns.choices) for choice in _choices(record, name)]
    question = _texts(record, columns.question) or ""
    lines = [f"{_letter(k)}. {choice}" for k, choice in enumerate(choices)]
    mapped["question"] = "\n".join([question, *lines] if question else lines)
    answer = _value(record, columns.answer) if isinstance(columns.answer, str) else None
    if choices and isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            detail = f"the answer is {answer}, and there are the choices 0 to {len(choices) - 1}"
            raise BadRecord("bad_field", detail, str(columns.answer))
        mapped["answer"] = _letter(answer)
    else:
        mapped["answer"] = _texts(record, columns.answer)
    return mapped


def check_columns(columns: Columns, names: Iterable[str], path: object) -> None:
    """Refuse a mapping that names a column which no record has.

    Raises:
        DataError: names the column, the nearest one and all there are.
    """
    there = list(dict.fromkeys(names))
    for name in columns_used(columns):
        if name not in there and name.partition(".")[0] not in there:
            near = difflib.get_close_matches(name, there, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{path}: no record has a column {name!r}; {meant}there are: {', '.join(there)}", str(path))


def suggestion(names: Iterable[str]) -> str:
    """A ``columns`` setting that may fit a table with these columns, in YAML; the names in it are guesses."""
    found = suggested_columns(names) or {"question": "COLUMN", "answer": "COLUMN"}
    return "columns: {" + ", ".join(f"{what}: {name}" for what, name in found.items()) + "}"


def suggested_columns(names: Iterable[str]) -> dict[str, str] | None:
    """A mapping that may fit a table with these columns, by their names; ``None`` where none tells of an answer."""
    there = {str(name).lower(): str(name) for name in names}
    guess = {
        what: next((there[name] for name in likely if name in there), None)
        for what, likely in LIKELY.items()
        if what != "messages"
    }
    found = {what: name for what, name in guess.items() if name is not None}
    turns = next((there[name] for name in LIKELY["messages"] if name in there), None)
    if turns is not None:
        found = {"messages": turns, **{what: name for what, name in found.items() if what == "images"}}
    return found if {"answer", "messages"} & {*found} and {"question", "images", "messages"} & {*found} else None


def _names(columns: str | list[str] | None) -> list[str]:
    if columns is None:
        return []
    return [columns] if isinstance(columns, str) else list(columns)


def _value(record: Mapping[str, Any], name: str) -> Any:
    """What the column holds; ``a.b`` or ``a.0`` reaches into it. ``None`` where it is missing."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _texts(record: Mapping[str, Any], columns: str | list[str] | None) -> str | None:
    """Texts of the columns joined by newlines; ``None`` where all are missing or null."""
    texts = [text for name in _names(columns) if (text := _text(_value(record, name), name)) is not None]
    return "\n".join(text for text in texts if text) if texts else None


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value != value:  # how a table without nulls spells one
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRecord.wrong_type(name, "text or a number", value)


def _choices(record: Mapping[str, Any], name: str) -> list[str]:
    value = _value(record, name)
    entries = value if isinstance(value, list) else [value]
    return [text for entry in entries if (text := _text(entry, name)) is not None]


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k + 1)
