"""From an image as a record names it to an ``ImageRef``; no file outside the image root can be reached."""

from __future__ import annotations

import base64
import errno
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ostlight.data.decode import HEAD_BYTES, ImageRules, is_image, not_an_image, too_large
from ostlight.data.remote import RemotePath, is_remote
from ostlight.data.sample import ImageRef, kind_of_file
from ostlight.data.video import Frame, FrameRef
from ostlight.data.video import is_video as has_video
from ostlight.errors import BadRecord

MAX_FOLDERS = 10_000
"""Folders of images whose real paths are remembered."""


class ImageRoot:
    """The folder image paths are relative to, and may not lead out of, by ``..`` or by a link.

    The one exception is a snapshot in the cache of the Hugging Face hub, whose files are links to ``blobs/`` of the
    same repository.

    Args:
        folder: need not exist where records hold their images themselves.
        rules: how images are decoded, and what they may hold.
    """

    def __init__(self, folder: Path, rules: ImageRules | None = None) -> None:
        self.folder, self.rules = folder, rules or ImageRules()
        self._real = os.path.realpath(folder)
        self._folders: dict[str, str] = {}
        self._allowed = tuple(path.rstrip(os.sep) + os.sep for path in (self._real, *_hub_blobs(self._real)))

    def find(self, value: Any, field: str = "images") -> ImageRef:
        """The image that ``value`` names: a path, a ``data:`` address, bytes, or ``{"bytes", "path"}``.

        Raises:
            BadRecord: ``missing_image``, ``image_outside_root``, ``remote_image``, ``corrupt_image`` (a ``data:``
                address that is not base64), ``not_an_image`` (a file of anything else), ``image_too_large``,
                ``bad_field``.
        """
        if isinstance(value, dict):
            value = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), value)
        if isinstance(value, bytes):
            return self._in_record(value)
        if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_encodable(value):
            raise BadRecord.wrong_type(
                field, "a path, a data: address, bytes, or {'bytes', 'path', 'url'} of one", value
            )
        scheme = value[:8].lower()
        if scheme.startswith("data:"):
            return self._in_record(_decoded(value, field))
        if is_remote(value):
            detail = f"{value[:200]} is an internet address; set image_root to an address above it, or download it"
            raise BadRecord("remote_image", detail, field)
        if (data := _bare_base64(value)) is not None:
            return self._in_record(data)
        if scheme.startswith("file:"):
            value = self._of_address(value)
        return ImageRef(path=self._inside(value, field), rules=self.rules)

    def _in_record(self, data: bytes) -> ImageRef:
        if len(data) > self.rules.encoded_bytes:
            limit = f"{self.rules.encoded_bytes:,} (limits.image_bytes)"
            raise too_large("an image in the record", f"{len(data):,} bytes", limit)
        return ImageRef(data=data, rules=self.rules)

    def _of_address(self, address: str) -> str:
        """The path in a ``file:`` address, percent-decoded unless a file is called so as it stands."""
        path = address[len("file:") :]
        if path.startswith("//"):
            path = re.sub(r"^//(localhost(?=/))?", "", path, flags=re.IGNORECASE)
        decoded = unquote(path, errors="surrogateescape")
        if "\0" in decoded or not os.path.exists(os.path.join(self.folder, decoded)):
            return path
        return decoded

    def find_frame(self, frame: Frame, field: str = "videos") -> FrameRef:
        """The frame of a video that a record names: a path, bytes, or ``{"bytes", "path"}``.

        Raises:
            BadRecord: as ``find``.
        """
        value = frame.video
        if isinstance(value, dict):
            value = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), None)
        if isinstance(value, str) and value[:5].lower() == "data:":
            value = _decoded(value, field)
        if isinstance(value, bytes):
            return FrameRef(data=value, rules=self.rules, number=frame.number, of=frame.of)
        if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_encodable(value):
            raise BadRecord.wrong_type(field, "a path or bytes", value)
        if value[:5].lower() == "file:":
            value = self._of_address(value)
        if isinstance(self.folder, RemotePath):
            value = value.removeprefix(f"{self.folder}/")
        if is_remote(value):
            detail = f"{value[:200]} is an internet address; set image_root to an address above it, or download it"
            raise BadRecord("remote_image", detail, field)
        path = self._inside(value, field, is_video=True)
        return FrameRef(path=path, rules=self.rules, number=frame.number, of=frame.of)

    def relative(self, path: Path) -> Path:
        """The path of an image below the root."""
        relative = os.path.relpath(path, self.folder)
        if relative.startswith(os.pardir):  # an absolute path may reach the root through a link
            relative = os.path.relpath(os.path.realpath(path), self._real)
        return Path(relative)

    def _realpath(self, path: str) -> str:
        """The path without links; folders are looked up once."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            if len(self._folders) > MAX_FOLDERS:
                self._folders.clear()
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)
        return os.path.realpath(real) if os.path.islink(real) else real

    def _inside(self, named: str, field: str, is_video: bool = False) -> Path:
        path = os.path.normpath(os.path.join(self.folder, named))
        real = self._realpath(path)
        if real != self._real and not real.startswith(self._allowed):
            detail = (
                f"{named!r} leads to {real}, outside the image root {self.folder}; "
                "set image_root to a folder that holds both, or move the image"
            )
            raise BadRecord("image_outside_root", detail, field)
        try:
            status = os.stat(real)
            if not stat.S_ISREG(status.st_mode):
                detail = f"{named!r} under the image root {self.folder} is {kind_of_file(status.st_mode)}, no file"
                raise BadRecord("missing_image", detail, field)
            with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            raise BadRecord("missing_image", _why_missing(named, path, self.folder, error), field) from error
        if is_video:
            if not has_video(head):
                raise BadRecord("corrupt_video", f"{named!r} is no video of a format that is read: {head!r}", field)
            return Path(path)
        if head and not is_image(head):
            raise not_an_image(repr(named), head, field=field)
        if status.st_size > self.rules.encoded_bytes:
            raise too_large(
                repr(named), f"{status.st_size:,} bytes", f"{self.rules.encoded_bytes:,} (limits.image_bytes)"
            )
        return Path(path)


class RemoteImageRoot(ImageRoot):
    """An address that images lie below (``s3://bucket/images``); a record may also name them by their whole address.

    Args:
        folder: the address.
        rules: how images are decoded, and what they may hold.
    """

    def __init__(self, folder: RemotePath, rules: ImageRules | None = None) -> None:
        self.folder: Path = folder
        self.rules = rules or ImageRules()

    def find(self, value: Any, field: str = "images") -> ImageRef:
        if isinstance(value, str) and value.startswith(f"{self.folder}/"):
            value = value.removeprefix(f"{self.folder}/")
        return super().find(value, field)

    def _of_address(self, address: str) -> str:
        return unquote(address[len("file:") :])

    def relative(self, path: Path) -> Path:
        return Path(*path.relative_to(self.folder).parts)

    def _inside(self, named: str, field: str, is_video: bool = False) -> Path:
        within = posixpath.normpath(named)
        if within.startswith(("../", "/")) or within == ".." or is_remote(named):
            detail = f"{named!r} leads out of the image root {self.folder}; set image_root to an address above both"
            raise BadRecord("image_outside_root", detail, field)
        path = self.folder / within
        try:
            status = path.stat()
        except OSError as error:
            raise BadRecord("missing_image", f"cannot read {path}: {error.strerror or error}", field) from error
        if not stat.S_ISREG(status.st_mode):
            raise BadRecord("missing_image", f"{path} is {kind_of_file(status.st_mode)}, no file", field)
        if status.st_size > self.rules.encoded_bytes and not is_video:
            raise too_large(
                str(path), f"{status.st_size:,} bytes", f"{self.rules.encoded_bytes:,} (limits.image_bytes)"
            )
        return path


def image_root_of(folder: Path, rules: ImageRules) -> ImageRoot:
    """Returns the image root at a local or remote folder."""
    return RemoteImageRoot(folder, rules) if isinstance(folder, RemotePath) else ImageRoot(folder, rules)


def _why_missing(named: str, path: str, folder: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{named!r} under the image root {folder} is a link that leads back to itself"
    if os.path.islink(path):
        return f"{named!r} under the image root {folder} is a link to {os.readlink(path)!r}, which cannot be read"
    if error.errno == errno.ENOENT and "\\" in named:
        return f"no file {named!r} under the image root {folder}; write its separators as /"
    if error.errno == errno.ENOENT:
        return f"no file {named!r} under the image root {folder}"
    return f"cannot read {named!r} under the image root {folder}: {error.strerror}"


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
