"""What one training sample is, whatever file it came from."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PILImage

from ostlight.data.decode import DEFAULT_RULES, ImageRules, decode, size_of, too_large
from ostlight.errors import BadRecord

IMAGE_PLACEHOLDER = "<image>"
"""The place of an image in a turn's text; the n-th placeholder of a sample is its n-th image."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        role: who speaks; ``tool`` is what a called function returned.
        text: of the message; may be empty beside ``tool_calls``.
        trained: whether the loss is taken on this turn: true for assistant turns that no flag of the record mutes.
        tool_calls: functions an assistant turn calls, as chat templates take them: each
            ``{"type": "function", "function": {"name": text, "arguments": object or text}}``, with ``id`` where the
            record has one.
        name: of the function whose result a ``tool`` turn is, where the record has it.
        tool_call_id: of the call that a ``tool`` turn answers, where the record has it.
    """

    role: Role
    text: str
    trained: bool = False
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def text_with_calls(self) -> str:
        """The text, and each function call as a line of JSON below it: all of the turn, for what reads texts alone."""
        calls = [json_text(call.get("function", call)) for call in self.tool_calls]
        return "\n".join(filter(None, [self.text, *calls]))


def json_text(value: Any) -> str:
    """The value in JSON for a text, without a placeholder in it, so that it brings no image of its own."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.replace(IMAGE_PLACEHOLDER, "\\u003cimage>")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that is opened only when it is needed: a file under the image root, or bytes in the record.

    Attributes:
        path: the file.
        data: the encoded image, instead of ``path``.
        rules: how it is decoded, and what it may hold.
    """

    path: Path | None = None
    data: bytes | None = None
    rules: ImageRules = DEFAULT_RULES

    @property
    def where(self) -> str:
        """What it is called in messages."""
        return str(self.path) if self.path is not None else f"{len(self.data or b'')} bytes in the record"

    def read_bytes(self) -> bytes:
        """The encoded image.

        Raises:
            BadRecord: ``missing_image`` where the file is not there or cannot be read; ``image_too_large``.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None, "an ImageRef has a path or data"
        return read_image_file(self.path, self.rules.encoded_bytes)

    def open(self) -> PILImage.Image:
        """The decoded image, RGB, as a viewer shows it; see ``ostlight.data.decode.decode``.

        Raises:
            BadRecord: ``missing_image``; ``corrupt_image`` where the bytes are not a whole image; ``image_too_large``.
        """
        return decode(self.read_bytes(), self.where, self.rules)


def open_images(images: Sequence[ImageRef]) -> list[PILImage.Image]:
    """The decoded images of one record; none is decoded unless the limits hold for each and for all together.

    Raises:
        BadRecord: see ``ImageRef.open``.
    """
    encoded = [image.read_bytes() for image in images]
    pixels = 0
    for image, data in zip(images, encoded, strict=True):
        width, height = size_of(data, image.where, image.rules)
        pixels += width * height
        if pixels > image.rules.record_pixels:
            limit = f"{image.rules.record_pixels:,} for all images of a record (limits.record_pixels)"
            raise too_large("the record", f"{len(images)} images of more than {pixels:,} pixels", limit)
    return [decode(data, image.where, image.rules) for image, data in zip(images, encoded, strict=True)]


def read_image_file(path: Path, limit: int) -> bytes:
    """The bytes of a file, which must be a plain one: no folder, pipe or device.

    Raises:
        BadRecord: ``missing_image``; ``image_too_large``.
    """
    try:
        # Without O_NONBLOCK, to open a pipe that nobody writes to would wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadRecord("missing_image", f"{path} is {kind_of_file(status.st_mode)}, no file", "images")
            if status.st_size > limit:
                raise too_large(str(path), f"{status.st_size:,} bytes", f"{limit:,} (limits.image_bytes)")
            return file.read(limit)
    except OSError as error:
        raise BadRecord("missing_image", f"cannot read {path}: {error.strerror}", "images") from error


def kind_of_file(mode: int) -> str:
    """What a file is, by the mode that ``stat`` returns."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe (FIFO)", stat.S_ISSOCK: "a socket"}
    kinds |= {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISREG: "a file"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "something else")


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation with its images.

    Attributes:
        id: the record's own id, or a hash of its content where it has none. Unique in its pool.
        turns: at least one turn is ``trained`` in a pool; an unlabelled pool may have none.
        images: as many as there are ``<image>`` placeholders in the turns, in that order.
        tags: the record's other scalar fields (task, source, ...), as text. Free for grouping and reports.
        position: index of the record in its pool.
        tools: functions the assistant may call, as chat templates take them in ``tools`` (JSON schemas).
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    position: int = -1
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """Text of everything before the last trained turn."""
        return "\n".join(t.text for t in self.turns[: self.last_answer])

    @property
    def answer(self) -> str:
        """Text of the last trained turn."""
        return self.turns[self.last_answer].text

    @property
    def last_reply(self) -> int:
        """Index of the last assistant turn, trained on or not; the number of turns where there is none."""
        replies = [k for k, turn in enumerate(self.turns) if turn.role == "assistant"]
        return replies[-1] if replies else len(self.turns)

    def up_to(self, turns: int) -> Sample:
        """The first turns, with their images."""
        first = self.turns[:turns]
        return replace(self, turns=first, images=self.images[: sum(t.text.count(IMAGE_PLACEHOLDER) for t in first)])

    @property
    def last_answer(self) -> int:
        """Index of the last trained turn.

        Raises:
            BadRecord: there is none.
        """
        answers = [k for k, turn in enumerate(self.turns) if turn.trained]
        if not answers:
            raise BadRecord("no_answer", "the record has no assistant turn to train on", "turns")
        return answers[-1]

    def text_key(self) -> str:
        """Hash of roles, texts and tool calls: equal for samples with the same texts, whatever their images."""
        digest = hashlib.sha256()
        for turn in self.turns:
            digest.update(f"{turn.role}\x1f{turn.text.strip()}\x1e".encode())
            if turn.tool_calls:
                digest.update(json.dumps(turn.tool_calls, sort_keys=True, default=str).encode() + b"\x1d")
        if self.tools:
            digest.update(json.dumps(self.tools, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def content_key(self) -> str:
        """Hash of texts and image bytes: equal for samples with the same texts and images."""
        digest = hashlib.sha256(self.text_key().encode())
        for image in self.images:
            digest.update(hashlib.sha256(image.read_bytes()).digest())
        return digest.hexdigest()
