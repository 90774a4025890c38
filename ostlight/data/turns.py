"""One message of a conversation, as files spell it, to a ``Turn``: roles, content parts, loss flags, tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ostlight.data.sample import IMAGE_PLACEHOLDER, Role, Turn
from ostlight.errors import BadRecord

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
CALLING_ROLES = frozenset({"function_call", "tool_call"})
"""Roles whose content is the call itself, in JSON."""

LOSS_FLAGS = ("loss", "loss_weight", "loss_scale", "loss_mask", "weight", "train", "trainable")
"""Fields of a turn that say whether it is trained on: 1 or true, 0 or false."""
_LOOKS_LIKE_FLAG = re.compile(r"loss|train|mask|weight|supervise|ignore", re.IGNORECASE)

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of an assistant turn with what it thought before its answer."""
IMAGE_PARTS = ("image_url", "image", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")
_TYPED_BY_KEY = ("text", "image", "image_url", "video", "audio")
_OWN_MEDIA = frozenset({"image", "images", "audio", "audios", "video", "videos"})
_QWEN_IMAGE = re.compile(r"<img>([^<>\n]{1,4096})</img>")
NEXT_IMAGE: Any = object()
"""Stands for a placeholder whose image is in the record's own list."""


def turn_keys(message: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of a turn's role and of its content."""
    return ("from", "value") if message.get("from") is not None else ("role", "content")


def read_turn(message: Any, where: str, found: list[Any]) -> Turn:
    """One turn; its images, as the record names them, are appended to ``found``.

    Args:
        where: name of the turn in messages, such as ``messages[3]``.
        found: gets an image, or ``NEXT_IMAGE``, for every placeholder of the turn's text.

    Raises:
        BadRecord: ``bad_field``, ``bad_role``, ``unsupported_media``.
    """
    if not isinstance(message, dict):
        raise BadRecord.wrong_type(where, "an object", message)
    role_key, content_key = turn_keys(message)
    speaker, content = message.get(role_key), message.get(content_key)
    if not isinstance(speaker, str):
        raise BadRecord("bad_field", f"{where} has no role: give it 'from' or 'role'", where)
    spoken = speaker.strip().lower()
    role = ROLES.get(spoken)
    if role is None:
        detail = f"{where} has the role {speaker!r}; known roles are {', '.join(ROLES)}"
        raise BadRecord("bad_role", detail, f"{where}.{role_key}")
    calls = _tool_calls(message, where)
    if spoken in CALLING_ROLES and not calls:
        calls, content = _calls(content, f"{where}.{content_key}"), None
    images: list[Any] = []
    if isinstance(content, list):
        text = "".join(_part(part, f"{where}.{content_key}[{n}]", images) for n, part in enumerate(content))
    elif isinstance(content, str):
        text = _text(content, images, role)
    elif content is None and calls:
        text = ""
    else:
        raise BadRecord.wrong_type(f"{where}.{content_key}", "text or a list of parts", content)
    text = _with_own_images(message, text, images, where)
    found += images
    is_learned = is_trained(message, role, where)
    text = _with_reasoning(message, text, role, where, is_learned and not calls)
    name, call_id = message.get("name"), message.get("tool_call_id")
    is_reply = role == "tool"
    return Turn(
        role,
        text,
        is_learned,
        calls,
        name if is_reply and isinstance(name, str) and name else None,
        call_id if is_reply and isinstance(call_id, str) and call_id else None,
    )


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that a record's ``tools`` describes, as chat templates take them; none where it holds no such list.

    ``value`` is a list of JSON schemas, or JSON text of one; a bare ``{"name", "parameters"}`` is wrapped.
    """
    tools = from_json(value)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return ()
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def is_trained(message: Mapping[str, Any], role: Role, where: str) -> bool:
    """Whether the loss is taken on the turn: what its flag says, or else whether the assistant speaks."""
    flags: dict[str, bool] = {}
    for name, value in message.items():
        if value is None or not _looks_like_flag(name):
            continue
        if name not in LOSS_FLAGS:
            detail = f"{where} has {name!r}, which looks like a loss flag and is none of {', '.join(LOSS_FLAGS)}; "
            raise BadRecord("bad_field", detail + "rename it to one of these, or remove it", f"{where}.{name}")
        if not isinstance(value, bool | int | float):
            raise BadRecord.wrong_type(f"{where}.{name}", "0, 1, true or false", value)
        if value not in (0, 1) or (value and role != "assistant"):
            detail = f"{where} has {name} {value}; only 0 and, for an assistant turn, 1 are understood"
            raise BadRecord("bad_field", detail, f"{where}.{name}")
        flags[name] = bool(value)
    if len(set(flags.values())) > 1:
        raise BadRecord("bad_field", f"{where} has flags that contradict each other: {flags}; keep one", where)
    return next(iter(flags.values()), role == "assistant")


@lru_cache(maxsize=1024)
def _looks_like_flag(name: Any) -> bool:
    return isinstance(name, str) and _LOOKS_LIKE_FLAG.search(name) is not None


def _tool_calls(message: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    for name in ("tool_calls", "function_call"):
        if (value := message.get(name)) not in (None, [], "", {}):
            return _calls(value, f"{where}.{name}")
    return ()


def _calls(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Calls as chat templates take them, from one call or a list of them, as objects or as JSON text."""
    value = from_json(value)
    return tuple(_call(call, where) for call in (value if isinstance(value, list) else [value]))


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord.wrong_type(where, "calls of functions, each with a name and arguments", call)
    arguments = from_json(function.get("arguments"))
    if not isinstance(arguments, dict):  # text that is no JSON object stays as it is
        arguments = {} if function.get("arguments") in (None, "") else function["arguments"]
    normal: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return normal | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def from_json(value: Any) -> Any:
    """The value that JSON text of a list or an object holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _part(part: Any, where: str, found: list[Any]) -> str:
    """The text of a content part; an image is appended to ``found``."""
    if isinstance(part, str):
        return _text(part, found)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind is None and isinstance(part, dict):
        kind = next((name for name in _TYPED_BY_KEY if part.get(name) is not None), None)
    if not isinstance(kind, str):
        raise BadRecord.wrong_type(where, "an object with a 'type'", part)
    if kind in TEXT_PARTS:
        if any(part.get(name) for name in (*IMAGE_PARTS, "video", "audio")):
            detail = f"{where} holds a text and {', '.join(part.keys() - {'type'})}; give each a part of its own"
            raise BadRecord("bad_field", detail, where)
        value = next((part[name] for name in ("text", "value", "content") if part.get(name) is not None), None)
        if not isinstance(value, str):
            raise BadRecord.wrong_type(f"{where}.text", "text", value)
        return _text(value, found)
    if kind in IMAGE_PARTS:
        value = image_of_part(part)
        found.append(NEXT_IMAGE if value is None else value)
        return IMAGE_PLACEHOLDER
    if "audio" in kind or "video" in kind:
        raise BadRecord("unsupported_media", f"{where} is of type {kind!r}; only text and images are read", where)
    known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
    raise BadRecord("bad_field", f"{where} is of type {kind!r}; known types are {known}", where)


def image_of_part(part: Mapping[str, Any]) -> Any:
    """The image that a content part itself names; ``None`` where it stands for the next one of the record's list."""
    names = ("image_url", "image", "value", "url", "path", "source")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(value, dict) and value.get("url") is not None:
        return value["url"]
    if isinstance(value, dict) and isinstance(value.get("data"), str) and value.get("type") == "base64":  # Anthropic's
        return f"data:{value.get('media_type', 'image/png')};base64,{value['data']}"
    return value


def _with_reasoning(message: Mapping[str, Any], text: str, role: Role, where: str, needs_answer: bool) -> str:
    """The answer behind what the turn thought, in the ``<think>`` tags that chat templates look for.

    Raises:
        BadRecord: ``bad_field``; ``empty_answer`` where there is no answer behind it.
    """
    if not message.keys() & REASONING:
        return text
    given = {name: message[name] for name in REASONING if message.get(name) not in (None, "", [])}
    if not given:
        return text
    name, value = next(iter(given.items()))
    field = f"{where}.{name}"
    if not isinstance(value, str):
        raise BadRecord.wrong_type(field, "text", value)
    if role != "assistant":
        raise BadRecord("bad_field", f"{where} has {name!r}, and only an assistant thinks; remove it", field)
    if any(other != value for other in given.values()) or "</think>" in text:
        places = ", ".join(given) + (", </think> in the text" if "</think>" in text else "")
        raise BadRecord("bad_field", f"{where} holds its reasoning more than once ({places}); keep one", field)
    if needs_answer and not text.strip():
        raise BadRecord("empty_answer", f"{where} has {name!r} and no answer", field)
    stripped = value.strip("\n")
    return f"<think>\n{stripped}\n</think>\n\n{text}"


def _text(text: str, found: list[Any], role: Role | None = None) -> str:
    """The text with a placeholder for every image; a user's ``<img>path</img>`` (Qwen-VL) becomes one too."""
    if role == "user" and "<img>" in text and IMAGE_PLACEHOLDER not in text:
        found += _QWEN_IMAGE.findall(text)
        return _QWEN_IMAGE.sub(IMAGE_PLACEHOLDER, text)
    found += [NEXT_IMAGE] * text.count(IMAGE_PLACEHOLDER)
    return text


def _with_own_images(message: Mapping[str, Any], text: str, found: list[Any], where: str) -> str:
    """The text with placeholders for images that the turn itself lists in ``images`` or ``image``."""
    if not _OWN_MEDIA & message.keys():
        return text
    for field in ("audio", "audios", "video", "videos"):
        if message.get(field):
            raise BadRecord("unsupported_media", f"{where} has {field!r}; only text and images are read", where)
    own = images_of(message)
    if not own:
        return text
    free = [k for k, image in enumerate(found) if image is NEXT_IMAGE]
    if found and not free:
        detail = f"{where} has images in its content and in a field beside it; keep them in one place"
        raise BadRecord("image_count", detail, where)
    if not free:
        found[:0] = own
        return f"{IMAGE_PLACEHOLDER}\n" * len(own) + text
    if len(free) != len(own):
        detail = f"{where} has {len(free)} {IMAGE_PLACEHOLDER} placeholders but lists {len(own)} images"
        raise BadRecord("image_count", detail, f"{where}.images")
    for k, image in zip(free, own, strict=True):
        found[k] = image
    return text


def images_of(record: Mapping[str, Any]) -> list[Any]:
    """What ``images`` or ``image`` of a record or turn holds, as a flat list without the entries that mean no image.

    Null, empty text, empty bytes and ``{"bytes": null, "path": null}`` mean no image. Nothing else is checked.
    """
    return next((images for name in ("images", "image") if (images := flat_images(record.get(name)))), [])


def flat_images(value: Any) -> list[Any]:
    """The images in a field's value: one, a list, a list of lists, or JSON text of a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = from_json(value)
    if isinstance(value, list | tuple):
        return [image for entry in value for image in flat_images(entry)]
    return [] if is_no_image(value) else [value]


def is_no_image(value: Any) -> bool:
    """Whether an image field's value says that there is none."""
    if isinstance(value, dict):
        return all(entry is None or entry in ("", b"") for entry in value.values())
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return value != value  # how a table without nulls spells one
    return value is None or value == b""
