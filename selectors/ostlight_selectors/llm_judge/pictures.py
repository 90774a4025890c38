"""Turns and pictures as the messages of the OpenAI protocol."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

from PIL import Image as PILImage

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample

SENT_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
"""Formats every server reads; others are sent as PNG."""

_one_at_a_time = threading.Lock()
"""`ImageRef.open` sets the process's warning filters for a moment."""


def messages_of(conversation: Sample) -> list[dict[str, Any]]:
    """One message a turn, each picture as a data URL at its place in the text.

    Raises:
        BadRecord: ``missing_image``, ``corrupt_image``.
    """
    pictures = iter(conversation.images)
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        if IMAGE_PLACEHOLDER not in turn.text:
            messages.append({"role": turn.role, "content": turn.text})
            continue
        parts: list[dict[str, Any]] = []
        for k, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if k:
                parts.append({"type": "image_url", "image_url": {"url": data_url(next(pictures))}})
            if text.strip():
                parts.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": parts})
    return messages


def data_url(image: ImageRef) -> str:
    """The picture's own bytes where servers read its format, else a PNG of it.

    It is decoded in any case: a server would answer on a broken picture, too, and the answer would pass for a score.

    Raises:
        BadRecord: ``missing_image``, ``corrupt_image``.
    """
    encoded = image.read_bytes()
    kind = _kind_if_whole(encoded)
    if kind is None:
        buffer = io.BytesIO()
        with _one_at_a_time:
            image.open().save(buffer, "PNG")
        kind, encoded = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def _kind_if_whole(encoded: bytes) -> str | None:
    """The media type of a whole picture that can go as it is."""
    try:
        with PILImage.open(io.BytesIO(encoded)) as picture:
            kind = SENT_AS_THEY_ARE.get(picture.format or "")
            if kind is not None:
                picture.draft("L", (1, 1))  # a JPEG is read to its end, but most of its arithmetic is left out
                picture.load()
            return kind
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError):
        return None  # `ImageRef.open` says what is wrong with it
