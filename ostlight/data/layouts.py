"""Record layouts: how a record holds its conversation, recognized by the fields that it has.

``sharegpt`` (LLaVA and ShareGPT) and ``messages`` (OpenAI) are lists of turns, ``from``/``value`` or
``role``/``content`` in either. ``alpaca`` and ``question`` are one question and its answer in columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ostlight.data.sample import IMAGE_PLACEHOLDER, Role, Turn
from ostlight.errors import BadRecord

T = TypeVar("T", str, list[Any])

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}
NEXT_IMAGE: Any = object()
"""Stands for a placeholder whose image is in the record's own list."""


class Conversation(NamedTuple):
    """Turns, and the images as the record names them (paths, addresses, bytes), in the order of their placeholders."""

    turns: list[Turn]
    images: list[Any]


@dataclass(frozen=True)
class Layout:
    """One record layout.

    Attributes:
        name: in a configuration.
        fields: that hold the conversation; a record with the first of them has this layout.
        read: the conversation of a record; its second argument says whether the pool is labelled, and so whether an
            empty answer counts as one. Raises ``BadRecord`` (``bad_field``, ``bad_role``, ``unsupported_media``).
    """

    name: str
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any], bool], Conversation]


def layout_of(record: Mapping[str, Any]) -> Layout | None:
    """The first layout whose first field the record has."""
    return next((layout for layout in LAYOUTS.values() if layout.fields[0] in record), None)


def turn_keys(message: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of a turn's role and of its content."""
    return ("from", "value") if message.get("from") is not None else ("role", "content")


def images_of(record: Mapping[str, Any]) -> list[Any]:
    """What ``images`` or ``image`` holds, as a list; not yet checked."""
    value = record.get("images")
    if value is None:
        value = record.get("image")
    if value is None or isinstance(value, list):
        return value or []
    return [value]


def _read_turns(field: str, record: Mapping[str, Any], labelled: bool) -> Conversation:
    """A list of turns; a ``system`` field beside it comes first."""
    found: list[Any] = []
    turns = _system(record) + [
        _turn(message, f"{field}[{n}]", found) for n, message in enumerate(_field(record, field, list) or [])
    ]
    return Conversation(turns, _in_order(found, images_of(record)))


def _read_alpaca(record: Mapping[str, Any], labelled: bool) -> Conversation:
    """Instruction and input make one turn, joined by a newline. Answers in the history are trained on too."""
    turns = _system(record)
    for n, pair in enumerate(_field(record, "history", list) or []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise BadRecord.wrong_type(f"history[{n}]", "a pair of texts", pair)
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1], trained=True)]
    question = [part for part in (_field(record, "instruction", str), _field(record, "input", str)) if part]
    turns += [Turn("user", "\n".join(question)), *_answer(record, "output", labelled)]
    return Conversation(turns, images_of(record))


def _read_question(record: Mapping[str, Any], labelled: bool) -> Conversation:
    question = _field(record, "question", str)
    if question is None:
        raise BadRecord.wrong_type("question", "text", None)
    return Conversation([Turn("user", question), *_answer(record, "answer", labelled)], images_of(record))


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("sharegpt", ("conversations", "system"), partial(_read_turns, "conversations")),
        Layout("messages", ("messages", "system"), partial(_read_turns, "messages")),
        Layout("alpaca", ("instruction", "input", "output", "system", "history"), _read_alpaca),
        Layout("question", ("question", "answer"), _read_question),
    )
}


def _field(record: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """The field; ``None`` where it is missing or null."""
    value = record.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise BadRecord.wrong_type(name, "text" if kind is str else "a list", value)


def _system(record: Mapping[str, Any]) -> list[Turn]:
    system = _field(record, "system", str)
    return [Turn("system", system)] if system else []


def _answer(record: Mapping[str, Any], field: str, labelled: bool) -> list[Turn]:
    answer = _field(record, field, str)
    if answer is None or not (labelled or answer.strip()):
        return []
    return [Turn("assistant", answer, trained=True)]


def _turn(message: Any, where: str, found: list[Any]) -> Turn:
    """One turn; its images are appended to ``found``."""
    if not isinstance(message, dict):
        raise BadRecord.wrong_type(where, "an object", message)
    role_key, content_key = turn_keys(message)
    speaker, content = message.get(role_key), message.get(content_key)
    if not isinstance(speaker, str):
        raise BadRecord("bad_field", f"{where} has no role: give it 'from' or 'role'", where)
    role = ROLES.get(speaker.strip().lower())
    if role is None:
        detail = f"{where} has the role {speaker!r}; known roles are {', '.join(ROLES)}"
        raise BadRecord("bad_role", detail, f"{where}.{role_key}")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.{content_key}[{n}]", found) for n, part in enumerate(content))
    elif isinstance(content, str):
        content = _text(content, found)
    else:
        raise BadRecord.wrong_type(f"{where}.{content_key}", "text or a list of parts", content)
    return Turn(role, content, _is_trained(message, role, where))


def _is_trained(message: Mapping[str, Any], role: Role, where: str) -> bool:
    for name in ("loss_weight", "weight"):
        weight = message.get(name)
        if weight is None:
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise BadRecord.wrong_type(f"{where}.{name}", "a number", weight)
        if weight not in (0, 1) or (weight == 1 and role != "assistant"):
            detail = f"{where} has {name} {weight}; only 0 and, for an assistant turn, 1 are understood"
            raise BadRecord("bad_field", detail, f"{where}.{name}")
        return bool(weight)
    return role == "assistant"


def _part(part: Any, where: str, found: list[Any]) -> str:
    """The text of a content part; an image is appended to ``found``."""
    if isinstance(part, str):
        return _text(part, found)
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise BadRecord.wrong_type(where, "an object with a 'type'", part)
    if kind == "text":
        value = next((part[name] for name in ("text", "value", "content") if part.get(name) is not None), None)
        if not isinstance(value, str):
            raise BadRecord.wrong_type(f"{where}.text", "text", value)
        return _text(value, found)
    if kind in ("image_url", "image"):
        names = ("image_url", "image", "value", "url", "path")
        value = next((part[name] for name in names if part.get(name) is not None), NEXT_IMAGE)
        if isinstance(value, dict) and value.get("url") is not None:
            value = value["url"]
        found.append(value)
        return IMAGE_PLACEHOLDER
    if "audio" in kind or "video" in kind:
        raise BadRecord("unsupported_media", f"{where} is of type {kind!r}; only text and images are read", where)
    raise BadRecord("bad_field", f"{where} is of type {kind!r}; known types are text, image_url, image", where)


def _text(text: str, found: list[Any]) -> str:
    found += [NEXT_IMAGE] * text.count(IMAGE_PLACEHOLDER)
    return text


def _in_order(found: list[Any], listed: list[Any]) -> list[Any]:
    """The images in the order of their placeholders: a bare one takes the next image of the record's own list."""
    remaining = iter(listed)
    ordered = [next(remaining, None) if image is NEXT_IMAGE else image for image in found]
    return [image for image in ordered if image is not None] + list(remaining)
