"""``dataset_info.json``: the description of a file by which LLaMA-Factory trains on it as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ostlight.data.layouts import layout_of
from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.data.turns import CALLING_ROLES, REASONING, ROLES, images_of, is_trained, turn_keys

VIDEO_FIELDS = ("videos", "video")
FILE_NAME = "dataset_info.json"
_ONE_TURN_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "question": {"prompt": "question", "response": "answer"},
}


class UnsuitableError(Exception):
    """LLaMA-Factory cannot train on the file as it is."""


def describe(file_name: str, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of a file in ``dataset_info.json``, from all its records.

    Raises:
        UnsuitableError: no entry would hold for all of them; says why.
    """
    found: dict[str, set[Any]] = defaultdict(set)  # what must be the same in all records
    fields: set[str] = set()
    turns_field = ""
    for record in records:
        layout = layout_of(record)
        if layout is None:
            raise UnsuitableError("its records have none of the layouts that are known")
        if any(record.get(name) for name in VIDEO_FIELDS):
            raise UnsuitableError("its records have videos, which are not described here")
        found["record layouts"].add(layout.name)
        fields.update(name for name, value in record.items() if value is not None)
        if layout.name == "texts":
            raise UnsuitableError("its turns are pairs of user and assistant, which LLaMA-Factory does not read")
        if layout.name == "prompt":
            raise UnsuitableError("it has prompts and completions apart, which LLaMA-Factory reads as texts only")
        if layout.name in _ONE_TURN_COLUMNS:
            texts = [value for value in record.values() if isinstance(value, str)]
        else:
            turns_field = layout.fields[0]
            turns = record[turns_field] or []
            if not isinstance(turns, list):
                raise UnsuitableError("its turns are JSON text, where LLaMA-Factory reads lists")
            texts = [_text(turn, found) for turn in turns]
        _check_images(record, "".join(texts).count(IMAGE_PLACEHOLDER))
        column = next((name for name in ("images", "image") if record.get(name) is not None), None)
        if column is not None:
            found["columns of images"].add((column, type(record[column])))
    for what, values in found.items():
        if len(values) > 1:
            raise UnsuitableError(f"it mixes {what}: {', '.join(sorted(map(str, values)))}")
    (layout_name,) = found["record layouts"]
    has_turns = layout_name not in _ONE_TURN_COLUMNS
    columns = {"messages": turns_field} if has_turns else {}
    columns |= {k: field for k, field in _ONE_TURN_COLUMNS.get(layout_name, {}).items() if field in fields}
    if "system" in fields and layout_name != "question":
        columns["system"] = "system"
    for name, _ in found["columns of images"]:
        columns["images"] = name
    entry: dict[str, Any] = {"file_name": file_name, "formatting": "sharegpt" if has_turns else "alpaca"}
    return entry | {"columns": columns} | ({"tags": _tags(found)} if has_turns else {})


def _text(turn: Mapping[str, Any], found: dict[str, set[Any]]) -> str:
    """The text of a turn; its keys and the name of its role are added to ``found``."""
    role_key, content_key = turn_keys(turn)
    name, content = turn[role_key], turn[content_key]
    role = ROLES[name.strip().lower()]
    found["keys of a turn"].add((role_key, content_key))
    found[f"names for the {role}"].add(name)
    if role in ("developer", "tool") or name.strip().lower() in CALLING_ROLES or turn.get("tool_calls"):
        raise UnsuitableError("it has developer or tool turns or tool calls")
    if any(turn.get(name) for name in REASONING):
        raise UnsuitableError("its turns hold reasoning in a field of its own, which LLaMA-Factory does not read")
    if role == "assistant" and not is_trained(turn, role, "a turn"):
        raise UnsuitableError("it has assistant turns of loss weight 0, which LLaMA-Factory would train on")
    if not isinstance(content, str):
        raise UnsuitableError("its turns are lists of parts, where LLaMA-Factory reads text with <image> placeholders")
    return content


def _check_images(record: Mapping[str, Any], placeholders: int) -> None:
    images = images_of(record)
    if placeholders != len(images):
        raise UnsuitableError("it has images without an <image> placeholder, which LLaMA-Factory refuses")
    if any(not isinstance(image, str) or image.startswith("data:") for image in images):
        raise UnsuitableError("its images are not paths")


def _tags(found: Mapping[str, set[Any]]) -> dict[str, str]:
    # LLaMA-Factory takes a tag that is left out for absent, so all are named.
    role_key, content_key = next(iter(found.get("keys of a turn", ())), ("from", "value"))
    usual = {"user": "human", "assistant": "gpt"} if role_key == "from" else {}
    names = {
        f"{role}_tag": next(iter(found.get(f"names for the {role}", ())), usual.get(role, role))
        for role in ("user", "assistant", "system")
    }
    fixed = {"observation_tag": "observation", "function_tag": "function_call"}
    return {"role_tag": role_key, "content_tag": content_key} | names | fixed
