"""From an image as a record names it to an ``ImageRef``; no file outside the image root can be reached."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ostlight.data.sample import ImageRef
from ostlight.errors import BadRecord


class ImageRoot:
    """The folder image paths are relative to, and may not lead out of, by ``..`` or by a link.

    The one exception is a snapshot in the cache of the Hugging Face hub, whose files are links to ``blobs/`` of the
    same repository.

    Args:
        folder: need not exist where records hold their images themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = os.path.realpath(folder)
        self._allowed = tuple(path.rstrip(os.sep) + os.sep for path in (self._real, *_hub_blobs(self._real)))

    def find(self, value: Any, field: str = "images") -> ImageRef:
        """The image that ``value`` names: a path, a ``data:`` address, bytes, or ``{"bytes", "path"}``.

        Raises:
            BadRecord: ``missing_image``, ``image_outside_root``, ``remote_image``, ``corrupt_image`` (a ``data:``
                address that is not base64), ``bad_field``.
        """
        if isinstance(value, dict):
            value = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), None)
        if isinstance(value, bytes):
            return ImageRef(data=value)
        if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_encodable(value):
            raise BadRecord.wrong_type(field, "a path, a data: address or bytes", value)
        scheme = value[:8].lower()
        if scheme.startswith("data:"):
            return ImageRef(data=_decoded(value, field))
        if scheme.startswith(("http://", "https://")):
            detail = f"{value[:200]} is an internet address; download it to {self.folder} and name it by its path"
            raise BadRecord("remote_image", detail, field)
        if (data := _bare_base64(value)) is not None:
            return ImageRef(data=data)
        if scheme.startswith("file:"):
            value = self._of_address(value)
        return ImageRef(path=self._inside(value, field))

    def _of_address(self, address: str) -> str:
        """The path in a ``file:`` address, percent-decoded unless a file is called so as it stands."""
        path = address[len("file:") :]
        if path.startswith("//"):
            path = re.sub(r"^//(localhost(?=/))?", "", path, flags=re.IGNORECASE)
        decoded = unquote(path, errors="surrogateescape")
        if "\0" in decoded or not os.path.exists(os.path.join(self.folder, decoded)):
            return path
        return decoded

    def relative(self, path: Path) -> Path:
        """The path of an image below the root."""
        relative = os.path.relpath(path, self.folder)
        if relative.startswith(os.pardir):  # an absolute path may reach the root through a link
            relative = os.path.relpath(os.path.realpath(path), self._real)
        return Path(relative)

    def _inside(self, named: str, field: str) -> Path:
        path = os.path.normpath(os.path.join(self.folder, named))
        real = os.path.realpath(path)
        if real != self._real and not real.startswith(self._allowed):
            detail = (
                f"{named!r} leads to {real}, outside the image root {self.folder}; "
                "set image_root to a folder that holds both, or move the image"
            )
            raise BadRecord("image_outside_root", detail, field)
        if not os.path.isfile(real):
            raise BadRecord("missing_image", f"no file {named!r} under the image root {self.folder}", field)
        return Path(path)


def _hub_blobs(folder: str) -> list[str]:
    """``REPOSITORY/blobs`` for a folder in ``REPOSITORY/snapshots/REVISION`` of the hub's cache."""
    for snapshot in (path := Path(folder), *path.parents):
        blobs = snapshot.parent.parent / "blobs"
        if snapshot.parent.name == "snapshots" and blobs.is_dir():
            return [os.path.realpath(blobs)]
    return []


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _decoded(address: str, field: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadRecord.wrong_type(field, "a data: address in base64", address[:60])
    try:
        return _from_base64(unquote(body) if "%" in body else body)
    except ValueError as error:
        raise BadRecord("corrupt_image", f"a data: address is not base64: {error}", field) from error


def _from_base64(text: str) -> bytes:
    """Bytes of base64 text with line breaks, without padding, or of the URL-safe alphabet."""
    packed = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)


_URL_SAFE = str.maketrans("-_", "+/")
_BARE_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk0|Qk[1-9A-Za-z]|SUkq|TU0A)[A-Za-z0-9+/\s]{40,}={0,2}\s*")
"""Base64 of a PNG, JPEG, GIF, WebP, BMP or TIFF file, without a ``data:`` before it."""


def _bare_base64(value: str) -> bytes | None:
    """The bytes of an image in base64; ``None`` where the value is a path."""
    if len(value) < MIN_BARE_BASE64 or not _BARE_BASE64.fullmatch(value.strip()):
        return None
    try:
        return _from_base64(value)
    except ValueError:
        return None


MIN_BARE_BASE64 = 60
"""Characters; no image has fewer."""
