"""WebDataset: a tar file whose neighbouring members with the same key make one record."""

from __future__ import annotations

import io
import re
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostlight.data.atomic import atomic_path
from ostlight.data.formats.source import Keys, SpanSource, given_id, parse_object
from ostlight.errors import BadRecord, DataError

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
OTHER_MEDIA = frozenset({"mp4", "webm", "avi", "mov", "mkv", "wav", "mp3", "flac", "ogg", "m4a"})
_BLOCK = 512


class WebDataset(SpanSource):
    """``KEY.json`` holds the conversation; ``KEY.jpg`` or ``KEY.0.png``, ``KEY.1.png``, ... its images in order.

    A record's bytes are its members with their headers, so a subset is cut out without being unpacked.
    """

    name = "webdataset"

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def _index(self, starts: array[int], sizes: array[int], keys: Keys) -> None:
        try:
            with tarfile.open(self.path, "r:") as tar:
                key, described = None, b""
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # or the list of all members stays in memory
                    if not member.isfile():
                        continue
                    name, extension = split_name(member.name)
                    if name != key:
                        if key is not None:
                            _add_key(keys, key, described)
                        key, described = name, b""
                        starts.append(member.offset)
                        sizes.append(0)
                    if extension == "json":
                        file = tar.extractfile(member)
                        described = file.read() if file else b""
                    sizes[-1] = member.offset_data + -(-member.size // _BLOCK) * _BLOCK - starts[-1]
                if key is not None:
                    _add_key(keys, key, described)
        except tarfile.TarError as error:
            raise DataError(f"{self.path} is not a whole tar file: {error}") from error

    def record(self, i: int) -> dict[str, Any]:
        described: bytes | None = None
        images: list[tuple[tuple[int, str], dict[str, Any]]] = []
        key = ""
        with tarfile.open(fileobj=io.BytesIO(self.raw(i)), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    continue
                key, extension = split_name(member.name)
                kind = extension.rpartition(".")[2].lower()
                if kind in OTHER_MEDIA:
                    raise BadRecord("unsupported_media", f"{member.name} is sound or film; only images are read")
                if extension == "json":
                    described = file.read()
                elif kind in IMAGES:
                    images.append((_order(extension), {"bytes": file.read(), "path": None}))
        if described is None:
            raise BadRecord("bad_field", f"the members of {key!r} hold no {key}.json with the conversation", "json")
        record = parse_object(described)
        if images:
            record.pop("image", None)
            record["images"] = [image for _, image in sorted(images, key=lambda p: p[0])]
        return {"id": key, **record} if given_id(record) is None else record

    def write(self, kept: Sequence[int], target: Path) -> None:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for i in kept:
                file.write(self.raw(i))
            file.write(bytes(2 * _BLOCK))


def split_name(member: str) -> tuple[str, str]:
    """Key and extension: the file name is cut at its first dot, folders belong to the key."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    key, _, extension = name.partition(".")
    return folder + slash + key, extension


def _order(extension: str) -> tuple[int, str]:
    number = re.match(r"(\d+)\.", extension)
    return (int(number[1]) if number else -1, extension)


def _add_key(keys: Keys, key: str, described: bytes) -> None:
    try:
        name = given_id(parse_object(described))
    except BadRecord:
        name = None
    keys.add_given(name or key)
