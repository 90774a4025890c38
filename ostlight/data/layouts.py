"""Record layouts: how a record holds its conversation, recognized by the fields that it has.

``sharegpt`` (LLaVA and ShareGPT), ``messages`` (OpenAI) and ``conversation`` are lists of turns, ``from``/``value`` or
``role``/``content`` in each. ``texts`` (the Cauldron) is a list of pairs of question and answer. ``alpaca`` and
``question`` are one question and its answer in columns; ``prompt`` is TRL's prompt and completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ostlight.data.sample import Turn
from ostlight.data.turns import NEXT_IMAGE, from_json, images_of, read_turn
from ostlight.errors import BadRecord

T = TypeVar("T", str, list[Any])


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
    """The first layout whose first field is filled; where none is, the first whose first field the record has."""
    for holds in (_is_filled, _is_there):
        for layout in LAYOUTS.values():
            if holds(record, layout.fields[0]):
                return layout
    return None


def _is_there(record: Mapping[str, Any], field: str) -> bool:
    return field in record


def _is_filled(record: Mapping[str, Any], field: str) -> bool:
    return record.get(field) not in (None, "", [])


def _read_turns(field: str, record: Mapping[str, Any], labelled: bool) -> Conversation:
    """A list of turns; a ``system`` field beside it comes first."""
    found: list[Any] = []
    turns = _system(record) + [
        read_turn(message, f"{field}[{n}]", found) for n, message in enumerate(_field(record, field, list) or [])
    ]
    return Conversation(turns, _in_order(found, images_of(record)))


def _read_texts(record: Mapping[str, Any], labelled: bool) -> Conversation:
    """Pairs of ``user`` and ``assistant`` text, as the Cauldron has them; all answers are trained on."""
    found: list[Any] = []
    turns = _system(record)
    for n, pair in enumerate(_field(record, "texts", list) or []):
        if not (isinstance(pair, dict) and isinstance(pair.get("user"), str)):
            raise BadRecord.wrong_type(f"texts[{n}]", "an object with the texts 'user' and 'assistant'", pair)
        for role, key in (("user", "user"), ("assistant", "assistant")):
            if pair.get(key) is not None:
                turns.append(read_turn({"role": role, "content": pair[key]}, f"texts[{n}]", found))
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


def _read_prompt(record: Mapping[str, Any], labelled: bool) -> Conversation:
    """Prompt and completion, each a text or a list of turns, as TRL has them; the completion alone is trained on."""
    found: list[Any] = []
    turns = _system(record)
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        turns.append(Turn("user", prompt))
    else:
        given = enumerate(_field(record, "prompt", list) or [])
        turns += [replace(read_turn(one, f"prompt[{n}]", found), trained=False) for n, one in given]
    if isinstance(record.get("completion"), str):
        turns += _answer(record, "completion", labelled)
    else:
        given = enumerate(_field(record, "completion", list) or [])
        turns += [read_turn(one, f"completion[{n}]", found) for n, one in given]
    return Conversation(turns, _in_order(found, images_of(record)))


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
        Layout("conversation", ("conversation", "system"), partial(_read_turns, "conversation")),
        Layout("texts", ("texts", "system"), _read_texts),
        Layout("alpaca", ("instruction", "input", "output", "system", "history"), _read_alpaca),
        Layout("question", ("question", "answer"), _read_question),
        Layout("prompt", ("completion", "prompt", "system"), _read_prompt),
    )
}


def _field(record: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """The field; ``None`` where it is missing or null. A list may be JSON text, as tables have it."""
    value: Any = record.get(name)
    if kind is list and isinstance(value, str):
        value = from_json(value) if value else None
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


def _in_order(found: list[Any], listed: list[Any]) -> list[Any]:
    """The images in the order of their placeholders: a bare one takes the next image of the record's own list."""
    remaining = iter(listed)
    ordered = [next(remaining, None) if image is NEXT_IMAGE else image for image in found]
    return [image for image in ordered if image is not None] + list(remaining)
