"""WebDataset: a tar file whose neighbouring members with the same key make one record."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ostlight.data.formats.source import RecordHashes, SpanSource, own_id, parse_object
from ostlight.errors import BadRecord, DataError

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
OTHER_MEDIA = frozenset({"mp4", "webm", "avi", "mov", "mkv", "wav", "mp3", "flac", "ogg", "m4a"})
_BLOCK = 512


class WebDataset(SpanSource):
    """``KEY.json`` holds the conversation; ``KEY.jpg`` or ``KEY.0.png``, ``KEY.1.png``, ... its images in order.

    A record's bytes are its members with their headers, so a subset is cut out without being unpacked.
    """

    name = "webdataset"
    framing = (b"", b"", bytes(2 * _BLOCK))

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        try:
            with tarfile.open(self.path, "r:") as tar:
                for key, members in groupby(_files(tar), key=lambda member: split_name(member.name)[0]):
                    start, stop, described = -1, 0, b""
                    for member in members:
                        start = member.offset if start < 0 else start
                        stop = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                        if split_name(member.name)[1] == "json":
                            described = _content(tar, member)
                    hashes.add(_id(key, described))
                    yield start, stop - start
        except tarfile.TarError as error:
            raise DataError(f"{self.path} is not a whole tar file: {error}", self.path) from error

    def record(self, i: int) -> dict[str, Any]:
        described: bytes | None = None
        images: list[tuple[tuple[int, str], dict[str, Any]]] = []
        key = ""
        with tarfile.open(fileobj=io.BytesIO(self.raw(i)), mode="r:") as tar:
            for member in _files(tar):
                key, extension = split_name(member.name)
                kind = extension.rpartition(".")[2].lower()
                if kind in OTHER_MEDIA:
                    raise BadRecord("unsupported_media", f"{member.name} is audio or video; only images are read")
                if extension == "json":
                    described = _content(tar, member)
                elif kind in IMAGES:
                    images.append((_order(extension), {"bytes": _content(tar, member), "path": None}))
        if described is None:
            raise BadRecord("bad_field", f"the members of {key!r} hold no {key}.json with the conversation", "json")
        record = parse_object(described)
        if images:
            record.pop("image", None)
            record["images"] = [image for _, image in sorted(images, key=lambda pair: pair[0])]
        return {"id": key, **record} if own_id(record) is None else record


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members.clear()  # type: ignore[attr-defined]  # or the list of all members stays in memory
        if member.isfile():
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a member that is a file has content"
    return file.read()


def split_name(member: str) -> tuple[str, str]:
    """Key and extension: the file name is cut at its first dot, folders belong to the key."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    key, _, extension = name.partition(".")
    return folder + slash + key, extension


def _order(extension: str) -> tuple[int, str]:
    number = re.match(r"(\d+)\.", extension)
    return (int(number[1]) if number else -1, extension)


def _id(key: str, described: bytes) -> str:
    """The id in the record's JSON, or else its key."""
    try:
        return own_id(parse_object(described)) or key
    except BadRecord:
        return key
