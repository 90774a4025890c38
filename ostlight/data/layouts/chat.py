"""Lists of chat turns: ``from``/``value`` as LLaVA and ShareGPT write them, ``role``/``content`` as OpenAI does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts.draft import NEXT_IMAGE, Draft
from ostlight.data.layouts.fields import images, items, text, wrong_type
from ostlight.data.sample import IMAGE_PLACEHOLDER, Role, Turn
from ostlight.errors import BadRecord

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}


def draft_of_turns(record: Mapping[str, Any], name: str) -> Draft:
    """The conversation in the record's list ``name``; a ``system`` field beside it comes first.

    Raises:
        BadRecord: ``bad_field``, ``bad_role``, ``unsupported_media``.
    """
    turns: list[Turn] = []
    found: list[Any] = []
    system = text(record, "system")
    if system:
        turns.append(Turn("system", system))
    for n, message in enumerate(items(record, name)):
        turns.append(_turn(message, f"{name}[{n}]", found))
    return Draft(turns, _in_order(found, images(record)))


def _turn(message: Any, where: str, found: list[Any]) -> Turn:
    if not isinstance(message, dict):
        raise wrong_type(where, "an object", message)
    role_tag, content_tag = ("from", "value") if message.get("from") is not None else ("role", "content")
    said_by = message.get(role_tag)
    if not isinstance(said_by, str):
        raise BadRecord("bad_field", f"{where} has no role: give it 'from' or 'role'", where)
    role = ROLES.get(said_by.strip().lower())
    if role is None:
        known = ", ".join(ROLES)
        raise BadRecord("bad_role", f"{where} is said by {said_by!r}; known roles are {known}", f"{where}.{role_tag}")
    content = message.get(content_tag)
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.{content_tag}[{n}]", found) for n, part in enumerate(content))
    elif isinstance(content, str):
        found.extend([NEXT_IMAGE] * content.count(IMAGE_PLACEHOLDER))
    else:
        raise wrong_type(f"{where}.{content_tag}", "text or a list of parts", content)
    return Turn(role, content, _is_trained(message, role, where))


def _is_trained(message: Mapping[str, Any], role: Role, where: str) -> bool:
    for name in ("loss_weight", "weight"):
        weight = message.get(name)
        if weight is None:
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise wrong_type(f"{where}.{name}", "a number", weight)
        if weight not in (0, 1) or (weight == 1 and role != "assistant"):
            detail = f"{where} has {name} {weight}; only 0 and, for an assistant turn, 1 are understood"
            raise BadRecord("bad_field", detail, f"{where}.{name}")
        return bool(weight)
    return role == "assistant"


def _part(part: Any, where: str, found: list[Any]) -> str:
    """The text a content part stands for; an image is put in ``found``."""
    if isinstance(part, str):
        found.extend([NEXT_IMAGE] * part.count(IMAGE_PLACEHOLDER))
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong_type(where, "an object with a 'type'", part)
    if kind == "text":
        value = next((part[name] for name in ("text", "value", "content") if part.get(name) is not None), None)
        if not isinstance(value, str):
            raise wrong_type(f"{where}.text", "text", value)
        found.extend([NEXT_IMAGE] * value.count(IMAGE_PLACEHOLDER))
        return value
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


def _in_order(found: list[Any], listed: list[Any]) -> list[Any]:
    """The images in the order of their marks: a bare mark takes the next one of the record's own list."""
    waiting = iter(listed)
    ordered = [next(waiting, None) if ref is NEXT_IMAGE else ref for ref in found]
    return [ref for ref in ordered if ref is not None] + list(waiting)
