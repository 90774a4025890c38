"""``dataset_info.json``: the description of a file by which LLaMA-Factory trains on it as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ostlight.data import fields
from ostlight.data.layouts import ROLES, layout_of, turn_keys
from ostlight.data.sample import IMAGE_PLACEHOLDER

FILE_NAME = "dataset_info.json"
_ONE_TURN_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "question": {"prompt": "question", "response": "answer"},
}


class Entry:
    """The description of one file, from all its records.

    Attributes:
        problem: why LLaMA-Factory cannot train on the file as it is; ``None`` if it can.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._fields: set[str] = set()
        self._found: dict[str, set[Any]] = defaultdict(set)
        """Values that must be the same in all records, by what they are."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one usable record."""
        layout = layout_of(record)
        assert layout is not None, "a usable record has a layout"
        self._found["record layouts"].add(layout.name)
        self._fields.update(name for name, value in record.items() if value is not None)
        if layout.name in _ONE_TURN_COLUMNS:
            texts = [value for value in record.values() if isinstance(value, str)]
        else:
            texts = [self._add_turn(turn) for turn in record[layout.fields[0]] or []]
        self._add_images(record, "".join(texts).count(IMAGE_PLACEHOLDER))

    def build(self, file_name: str) -> dict[str, Any] | None:
        """The entry; ``None`` where there is a ``problem``."""
        for what, values in self._found.items():
            if len(values) > 1:
                self.problem = self.problem or f"it mixes {what}: {', '.join(sorted(map(str, values)))}"
        if self.problem:
            return None
        (layout,) = self._found["record layouts"]
        has_turns = layout not in _ONE_TURN_COLUMNS
        columns = {"messages": "conversations" if layout == "sharegpt" else "messages"} if has_turns else {}
        columns |= {k: field for k, field in _ONE_TURN_COLUMNS.get(layout, {}).items() if field in self._fields}
        if "system" in self._fields and layout != "question":
            columns["system"] = "system"
        for name, _ in self._found["columns of images"]:
            columns["images"] = name
        entry: dict[str, Any] = {"file_name": file_name, "formatting": "sharegpt" if has_turns else "alpaca"}
        return entry | {"columns": columns} | ({"tags": self._tags()} if has_turns else {})

    def _tags(self) -> dict[str, str]:
        # LLaMA-Factory takes a tag that is left out for absent, so all are named.
        role_key, content_key = next(iter(self._found["keys of a turn"]), ("from", "value"))
        usual = {"user": "human", "assistant": "gpt"} if role_key == "from" else {}
        names = {
            role: next(iter(self._found[f"names for the {role}"]), usual.get(role, role)) for role in ROLES.values()
        }
        return {
            "role_tag": role_key,
            "content_tag": content_key,
            "user_tag": names["user"],
            "assistant_tag": names["assistant"],
            "system_tag": names["system"],
            "observation_tag": "observation",
            "function_tag": "function_call",
        }

    def _add_turn(self, turn: Mapping[str, Any]) -> str:
        """Add one turn; returns its text."""
        role_key, content_key = turn_keys(turn)
        name, content = turn[role_key], turn[content_key]
        role = ROLES[name.strip().lower()]
        self._found["keys of a turn"].add((role_key, content_key))
        self._found[f"names for the {role}"].add(name)
        if 0 in (turn.get("loss_weight"), turn.get("weight")) and role == "assistant":
            self.problem = "it has assistant turns of loss weight 0, which LLaMA-Factory would train on"
        if not isinstance(content, str):
            self.problem = "its turns are lists of parts, where LLaMA-Factory reads text with <image> placeholders"
            return ""
        return content

    def _add_images(self, record: Mapping[str, Any], placeholders: int) -> None:
        images = fields.images(record)
        for name in ("images", "image"):
            if record.get(name) is not None:
                self._found["columns of images"].add((name, type(record[name])))
                break
        if placeholders != len(images):
            self.problem = self.problem or "it has images without an <image> placeholder, which LLaMA-Factory refuses"
        if any(not isinstance(image, str) or image.startswith("data:") for image in images):
            self.problem = self.problem or "its images are not paths"
