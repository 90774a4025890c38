"""Converts turns and images to the messages of the OpenAI protocol."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

from PIL import ExifTags
from PIL import Image as PILImage

from ostlight.data.decode import size_of
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample

ACCEPTED_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
"""Formats every server reads; others are sent as PNG."""

PLAIN_MODES = ("RGB", "L", "P")

_lock = threading.Lock()
"""`ImageRef.open` sets the process's warning filters for a moment."""


def messages_of(conversation: Sample) -> list[dict[str, Any]]:
    """One message per turn, each image as a data URL at its place in the text.

    Raises:
        BadRecord: ``missing_image``, ``corrupt_image``.
    """
    images = iter(conversation.images)
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        if IMAGE_PLACEHOLDER not in turn.text:
            messages.append({"role": turn.role, "content": turn.text})
            continue
        parts: list[dict[str, Any]] = []
        for k, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if k:
                parts.append({"type": "image_url", "image_url": {"url": data_url(next(images))}})
            if text.strip():
                parts.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": parts})
    return messages


def data_url(image: ImageRef) -> str:
    """The image as a data URL: its own bytes if any server shows them alike, otherwise a PNG of what a viewer shows.

    It is always decoded first: a server may answer on a broken image, too, and the answer would pass for a score.

    Raises:
        BadRecord: ``missing_image``, ``corrupt_image``, ``image_too_large``.
    """
    encoded = image.read_bytes()
    size_of(encoded, image.where, image.rules)  # before any pixel is decoded
    kind = _media_type_if_valid(encoded)
    if kind is None:
        buffer = io.BytesIO()
        with _lock:
            image.open().save(buffer, "PNG")
        kind, encoded = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def _media_type_if_valid(encoded: bytes) -> str | None:
    """The media type of a valid image in an accepted format that needs no conversion, else ``None``."""
    try:
        with PILImage.open(io.BytesIO(encoded)) as image:
            kind = ACCEPTED_FORMATS.get(image.format or "")
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if rotated or image.mode not in PLAIN_MODES or image.has_transparency_data:
                return None
            if kind is not None:
                image.draft("L", (1, 1))  # a JPEG is read to its end, but most of its arithmetic is left out
                image.load()
            return kind
    except Exception:  # decoders and EXIF raise whatever damaged bytes lead to
        return None  # `ImageRef.open` says what is wrong with it
