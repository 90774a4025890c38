"""``dataset_info.json``: what LLaMA-Factory must be told of a file to train on it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts import layout_of
from ostlight.data.layouts.chat import ROLES
from ostlight.data.sample import IMAGE_PLACEHOLDER

FILE_NAME = "dataset_info.json"
_CHAT_FIELD = {"sharegpt": "conversations", "messages": "messages"}
_ONE_TURN_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "question": {"prompt": "question", "response": "answer"},
}


class Entry:
    """Looks at every record of a file and makes the file's entry, or says why none would be true."""

    def __init__(self) -> None:
        self._shapes: set[str] = set()
        self._fields: set[str] = set()
        self._image_columns: set[tuple[str, type]] = set()
        self._tags: set[tuple[str, str]] = set()
        self._speakers: dict[str, set[str]] = {}
        self.misfit: str | None = None

    def see(self, record: Mapping[str, Any]) -> None:
        """Take one usable record into account."""
        shape = layout_of(record)
        assert shape is not None, "a usable record has a shape"
        self._shapes.add(shape.NAME)
        self._fields.update(name for name, value in record.items() if value is not None)
        chat = _CHAT_FIELD.get(shape.NAME)
        texts = self._see_turns(record[chat] or []) if chat else [str(v) for v in record.values() if isinstance(v, str)]
        self._see_images(record, texts)

    def made(self, file_name: str) -> dict[str, Any] | None:
        """The entry; ``None`` where ``misfit`` says why there is none."""
        several: dict[str, set[Any]] = {
            "shapes of record": self._shapes,
            "columns of images": self._image_columns,
            "spellings of a turn": self._tags,
            **{f"names for the {role}": names for role, names in self._speakers.items()},
        }
        for what, found in several.items():
            if len(found) > 1:
                self.misfit = self.misfit or f"it mixes {what}: {', '.join(sorted(map(str, found)))}"
        if self.misfit:
            return None
        shape = next(iter(self._shapes))
        columns: dict[str, str] = {}
        if shape in _CHAT_FIELD:
            columns["messages"] = _CHAT_FIELD[shape]
        else:
            columns |= {name: field for name, field in _ONE_TURN_COLUMNS[shape].items() if field in self._fields}
        if "system" in self._fields and shape != "question":
            columns["system"] = "system"
        for name, _ in self._image_columns:
            columns["images"] = name
        formatting = "sharegpt" if shape in _CHAT_FIELD else "alpaca"
        entry: dict[str, Any] = {"file_name": file_name, "formatting": formatting, "columns": columns}
        if formatting == "sharegpt":
            entry["tags"] = self._made_tags()
        return entry

    def _made_tags(self) -> dict[str, str]:
        # Tags that are left out count as absent there, not as the usual ones: so all are named.
        role_tag, content_tag = next(iter(self._tags), ("from", "value"))
        usual = {"user": "human", "assistant": "gpt"} if role_tag == "from" else {}
        names = {role: next(iter(self._speakers.get(role, {usual.get(role, role)}))) for role in ROLES.values()}
        return {
            "role_tag": role_tag,
            "content_tag": content_tag,
            "user_tag": names["user"],
            "assistant_tag": names["assistant"],
            "system_tag": names["system"],
            "observation_tag": "observation",
            "function_tag": "function_call",
        }

    def _see_turns(self, turns: list[Any]) -> list[str]:
        texts: list[str] = []
        for turn in turns:
            tags = ("from", "value") if turn.get("from") is not None else ("role", "content")
            self._tags.add(tags)
            speaker, said = turn[tags[0]], turn[tags[1]]
            self._speakers.setdefault(ROLES[speaker.strip().lower()], set()).add(speaker)
            if 0 in (turn.get("loss_weight"), turn.get("weight")) and ROLES[speaker.strip().lower()] == "assistant":
                self.misfit = "it has assistant turns of loss weight 0, which LLaMA-Factory would train on"
            if isinstance(said, str):
                texts.append(said)
            else:
                self.misfit = "its turns are lists of parts, where LLaMA-Factory reads text with <image> marks"
        return texts

    def _see_images(self, record: Mapping[str, Any], texts: list[str]) -> None:
        images: list[Any] = []
        for name in ("images", "image"):
            if record.get(name) is not None:
                self._image_columns.add((name, type(record[name])))
                images = record[name] if isinstance(record[name], list) else [record[name]]
                break
        if sum(text.count(IMAGE_PLACEHOLDER) for text in texts) != len(images):
            self.misfit = self.misfit or "it has images without an <image> mark, which LLaMA-Factory refuses"
        if any(not isinstance(image, str) or image.startswith("data:") for image in images):
            self.misfit = self.misfit or "its images are not paths"
