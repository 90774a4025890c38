"""A table's own columns as a question, an answer and images, by the mapping that a configuration gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ostlight.config.schema import Columns
from ostlight.data.numbers import whole, whole_of_text
from ostlight.data.turns import flat_images
from ostlight.errors import BadRecord, DataError
from ostlight.suggest import did_you_mean

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

    Texts of several columns are joined by newlines, images in their order. Numbers become text, whole ones without a
    decimal point (a table with a missing value spells 2 as 2.0). With ``choices`` the question gets one line for each
    (``A. ...``), and an answer that is a number, or the digits of one and no choice's text, names one by its letter,
    counted from 0.
    Columns that are not mapped stay: without ``images``, those of the record's own ``images`` or ``image``.

    Raises:
        BadRecord: ``bad_field`` where a column holds no text, no column holds a question, or an answer names no choice,
            or one choice by its number and another by its text.
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
    question = _texts(record, columns.question)
    if question is None and columns.question is not None:
        raise BadRecord.wrong_type(" and ".join(_names(columns.question)), "a question", None)
    lines = [f"{_letter(k)}. {choice}" for k, choice in enumerate(choices)]
    mapped["question"] = "\n".join([question, *lines] if question else lines)
    mapped["answer"] = _texts(record, columns.answer)
    if choices and isinstance(columns.answer, str):
        number = _number_of_choice(record, columns, choices)
        mapped["answer"] = mapped["answer"] if number is None else _letter(number)
    return mapped


def _number_of_choice(record: Mapping[str, Any], columns: Columns, choices: list[str]) -> int | None:
    """The choice that the answer names by its number, counted from 0; ``None`` where the answer is a text.

    Raises:
        BadRecord: there is no such choice, or the number is also another choice's text. Among texts a number of the
            file can only be a choice's number.
    """
    answer = whole(_value(record, str(columns.answer)))
    number = whole_of_text(answer) if isinstance(answer, str) else answer
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    there = 0 <= number < len(choices)
    if str(number) in choices and (isinstance(answer, str) or _are_numbers(record, columns)):
        if there and choices[number] != str(number):
            detail = (
                f"the answer {answer!r} is the text of choice {_letter(choices.index(str(number)))} and the number of "
                f"choice {_letter(number)}; write the letter"
            )
            raise BadRecord("bad_field", detail, str(columns.answer))
        if isinstance(answer, str):
            return None
    if not there:
        detail = f"the answer is {answer}, and there are the choices 0 to {len(choices) - 1}"
        raise BadRecord("bad_field", detail, str(columns.answer))
    return number


def _are_numbers(record: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a choice is a number in the file, and so may be what a number means."""
    entries = [entry for name in _names(columns.choices) for entry in _entries(record, name)]
    return any(isinstance(entry, int | float) for entry in entries)


def check_columns(columns: Columns, names: Iterable[str], path: object) -> None:
    """Refuse a mapping that names a column which no record has.

    Raises:
        DataError: names the column, the nearest one and all there are.
    """
    there = list(dict.fromkeys(names))
    for name in columns_used(columns):
        if name not in there and name.partition(".")[0] not in there:
            meant = did_you_mean(name, there)
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
        return str(whole(value))
    raise BadRecord.wrong_type(name, "text or a number", value)


def _choices(record: Mapping[str, Any], name: str) -> list[str]:
    return [text for entry in _entries(record, name) if (text := _text(entry, name)) is not None]


def _entries(record: Mapping[str, Any], name: str) -> list[Any]:
    value = _value(record, name)
    return value if isinstance(value, list) else [value]


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k + 1)
