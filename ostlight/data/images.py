"""From an image as a record names it to an ``ImageRef``; no file outside the image root can be reached."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

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
            value = next((value[name] for name in ("bytes", "path", "url") if value.get(name) is not None), None)
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
        return ImageRef(path=self._inside(value.removeprefix("file://"), field))

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
    if not comma or not head.endswith(";base64"):
        raise BadRecord.wrong_type(field, "a data: address in base64", address[:60])
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise BadRecord("corrupt_image", f"a data: address is not base64: {error}", field) from error
