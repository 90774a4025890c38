"""From what a record says of an image to an image that may be opened, and no other file."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Any

from ostlight.data.layouts.fields import wrong_type
from ostlight.data.sample import ImageRef
from ostlight.errors import BadRecord


class ImageRoot:
    """The folder image paths are relative to, and may not lead out of, by ``..`` or by a link.

    Args:
        folder: need not exist where records hold their images themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = os.path.realpath(folder)
        self._real_folders: dict[str, str] = {}

    def find(self, said: Any, field: str = "images") -> ImageRef:
        """The image meant by a path, a ``data:`` address, bytes, or ``{"bytes", "path"}``.

        Raises:
            BadRecord: ``missing_image``, ``image_outside_root``, ``remote_image``, ``corrupt_image`` (a ``data:``
                address that is not base64), ``bad_field``.
        """
        if isinstance(said, dict):
            said = next((said[name] for name in ("bytes", "path", "url") if said.get(name) is not None), None)
        if isinstance(said, bytes):
            return ImageRef(data=said)
        if not isinstance(said, str) or not said.strip() or "\0" in said or not _is_encodable(said):
            raise wrong_type(field, "a path, a data: address or bytes", said)
        scheme = said[:8].lower()
        if scheme.startswith("data:"):
            return ImageRef(data=_decoded(said, field))
        if scheme.startswith(("http://", "https://")):
            detail = f"{said[:200]} is on the net; fetch it under {self.folder} and name it by its path"
            raise BadRecord("remote_image", detail, field)
        return ImageRef(path=self._inside(said.removeprefix("file://"), field))

    def relative(self, image: ImageRef) -> Path | None:
        """The path under the root; ``None`` for an image held in the record."""
        if image.path is None:
            return None
        path = os.path.relpath(image.path, self.folder)
        # An absolute path may name the root by another way than the config does.
        return Path(
            path if not path.startswith(os.pardir) else os.path.relpath(os.path.realpath(image.path), self._real)
        )

    def _inside(self, said: str, field: str) -> Path:
        path = os.path.normpath(os.path.join(self.folder, said))
        folder, name = os.path.split(path)
        # One look at the file itself; its folder, shared by many, is resolved once.
        real = os.path.join(self._real_folder(folder), name)
        try:
            found = os.lstat(real)
            if stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(path)
                self._check_inside(real, said, field)
                found = os.stat(real)
        except (OSError, ValueError):
            found = None
        self._check_inside(real, said, field)
        if found is None or not stat.S_ISREG(found.st_mode):
            raise BadRecord("missing_image", f"no file {said!r} under the image root {self.folder}", field)
        return Path(path)

    def _real_folder(self, folder: str) -> str:
        real = self._real_folders.get(folder)
        if real is None:
            if len(self._real_folders) > 10_000:
                self._real_folders.clear()
            real = self._real_folders[folder] = os.path.realpath(folder)
        return real

    def _check_inside(self, real: str, said: str, field: str) -> None:
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            detail = (
                f"{said!r} leads to {real}, outside the image root {self.folder}; "
                "set image_root to a folder that holds both, or move the image"
            )
            raise BadRecord("image_outside_root", detail, field)


def _is_encodable(said: str) -> bool:
    try:
        os.fsencode(said)
    except UnicodeEncodeError:
        return False
    return True


def _decoded(address: str, field: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise wrong_type(field, "a data: address in base64", address[:60])
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise BadRecord("corrupt_image", f"a data: address is not base64: {error}", field) from error
