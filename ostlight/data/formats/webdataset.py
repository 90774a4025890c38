"""WebDataset: a tar file whose neighbouring members with the same key make one record."""

from __future__ import annotations

import io
import logging
import posixpath
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ostlight.data.atomic import atomic_path
from ostlight.data.decode import HEAD_BYTES, is_image
from ostlight.data.formats.source import (
    RECORD_BYTES,
    UNREADABLE,
    RecordHashes,
    SpanSource,
    id_hash,
    identity,
    is_no_id,
    parse_object,
)
from ostlight.data.turns import flat_images
from ostlight.errors import BadRecord, DataError

log = logging.getLogger(__name__)

IMAGES = frozenset({
    "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "ppm", "mpo",
    "heic", "heif", "ico", "tga", "svg", "jxl", "psd",
})  # fmt: skip
"""Extensions of images; those of formats that are not read are rejected by name when they are opened."""
VIDEOS = frozenset({"mp4", "m4v", "webm", "avi", "mov", "mkv", "mpg", "mpeg", "flv"})
AUDIO = frozenset({"wav", "mp3", "flac", "ogg", "m4a", "aac", "opus"})
TEXTS = frozenset({"txt", "text", "caption"})
"""Members that hold a caption, in shards without ``KEY.json``."""
MAX_LINKS = 40
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Content:
    """Where a link's content is in the archive, or why there is none."""

    offset: int = 0
    size: int = 0
    problem: str | None = None


class WebDataset(SpanSource):
    """``KEY.json`` holds the conversation; ``KEY.jpg`` or ``KEY.0.png``, ``KEY.1.png``, ... its images in order.

    Where the JSON names members as its images, these are the images, in its order. Else numbers in names count as
    numbers: ``image2`` comes before ``image10``. Members of other names are images if their content is. ``KEY.mp4`` is
    a video of the record.

    The members of a key follow each other; a key that comes again later belongs to no known record.

    A record's bytes are its members with their headers, so a subset is cut out without being unpacked. Links are
    followed to other members of the archive, and nowhere else; a subset holds their content in their place. Without
    ``KEY.json``, the text of ``KEY.txt`` is the field ``txt``, for ``columns``.
    """

    name = "webdataset"
    stored = ("hashes", "kinds", "start", "size")
    framing = (b"", b"", bytes(2 * _BLOCK))

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        self._links: dict[tuple[int, str], Content] = {}
        self._damage: dict[int, str] = {}
        super().__init__(path, record_bytes)

    def _details(self) -> Any:
        links = [[i, name, c.offset, c.size, c.problem] for (i, name), c in self._links.items()]
        return {"links": links, "damage": [*self._damage.items()]}

    def _set_details(self, details: Any) -> None:
        self._links = {(i, name): Content(*content) for i, name, *content in details["links"]}
        self._damage = dict(details["damage"])

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        """Each record's place. What is behind the first damaged header counts as one record, which is rejected."""
        size = self.path.stat().st_size
        linked: list[tuple[int, tarfile.TarInfo]] = []
        described_by_link: list[tuple[int, str]] = []
        keys = array("Q")
        records, stop = 0, 0
        with self.path.open("rb") as opened:
            archive = _Bounded(opened, size, self.record_bytes)
            walk = _Walk(archive, size)
            for key, members in groupby(walk, key=lambda member: split_name(member.name)[0]):
                start, described = -1, b""
                for member in members:
                    start = member.offset if start < 0 else start
                    stop = _end(member)
                    is_json = split_name(member.name)[1].lower() == "json"
                    if member.islnk() or member.issym():
                        linked.append((records, member))
                        described_by_link += [(records, member.name)] * is_json
                    elif is_json and member.size <= self.record_bytes:
                        described = archive.at(member.offset_data, member.size)
                if walk.damage is not None and walk.damaged_key in (key, None):
                    stop = start  # what is missing may belong to this record
                    break
                hashes.add(_identity(key, described))
                keys.append(id_hash(key))
                records += 1
                yield start, stop - start
            if walk.damage is not None:
                if not records:
                    raise DataError(f"{self.path} is not a whole tar file: {walk.damage}", self.path)
                log.warning(
                    f"{self.path} is damaged: {walk.damage}; what is behind cannot be read and counts as a record"
                )
                self._damage[records] = f"{walk.damage}; nothing behind it can be read"
                hashes.add_unreadable()
                yield stop, max(size - stop, 0)
            if linked:
                self._links = _resolved(linked, _Walk(archive, size))
            for i, name in described_by_link:
                found = self._links[i, name]
                described = archive.at(found.offset, found.size) if found.size <= self.record_bytes else b""
                hashes.replace(i, _identity(split_name(name)[0], described))
        for i in _repeated(np.frombuffer(keys, np.uint64)):
            hashes.replace(int(i), (0, UNREADABLE))

    def record(self, i: int) -> dict[str, Any]:
        if i in self._damage:
            raise BadRecord("damaged_archive", self._damage[i])
        raw = self.raw_within_limit(i)
        if self.kinds[i] == UNREADABLE:
            key = split_name(next(self._members(i, raw))[0].name)[0]
            detail = f"the members of {key!r} do not follow each other in the archive; write them together"
            raise BadRecord("split_record", detail)
        described: bytes | None = None
        text: dict[str, str] = {}
        media: dict[str, dict[str, dict[str, Any]]] = {"images": {}, "videos": {}}
        key, names = "", set[str]()
        for member, content in self._members(i, raw):
            key, name = split_name(member.name)
            extension = name.lower()
            if (once := extension if extension in ("json", *TEXTS) else name) in names:
                raise BadRecord(
                    "repeated_member", f"{member.name} is there twice, and which one is meant is not known", name
                )
            names.add(once)
            kind = extension.rpartition(".")[2]
            if kind in AUDIO:
                raise BadRecord("unsupported_media", f"{member.name} is audio; only images and videos are read")
            if isinstance(content, str):
                if extension == "json" or kind in IMAGES | VIDEOS:
                    raise BadRecord("bad_link", f"{member.name} {content}", name)
            elif extension == "json":
                described = content
            elif kind in VIDEOS:
                media["videos"][member.name] = {"bytes": content, "path": None}
            elif extension in TEXTS:
                text[extension] = content.decode("utf-8", "surrogateescape")
            elif kind in IMAGES or is_image(content[:HEAD_BYTES]):
                media["images"][member.name] = {"bytes": content, "path": None}
        if described is None and not (any(media.values()) and text):
            raise BadRecord("bad_field", f"the members of {key!r} hold no {key}.json with the conversation", "json")
        record: dict[str, Any] = {**text} if described is None else parse_object(described)
        for field, found in media.items():
            if found:
                ordered = _in_order(record, field, list(found))
                record.pop(field.removesuffix("s"), None)
                record[field] = [found[name] for name in ordered]
        return self._unchanged(i, _with_id(record, key), partial(key.encode, "utf-8", "surrogatepass"))

    def write(self, kept: Sequence[int], target: Path) -> None:
        with_links = {record for record, _ in self._links}
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for i in kept:
                file.write(self._without_links(i) if i in with_links else self.raw(i))
            file.write(self.framing[2])

    def _without_links(self, i: int) -> bytes:
        """The record's bytes, each link replaced by a member of that name with the content."""
        raw, done = self.raw(i), 0
        parts: list[bytes] = []
        for member, content in self._members(i, raw):
            if (member.islnk() or member.issym()) and isinstance(content, bytes):
                plain = tarfile.TarInfo(member.name)
                plain.size, plain.mtime, plain.mode = len(content), member.mtime, member.mode
                parts += [
                    raw[done : member.offset],
                    plain.tobuf(tarfile.PAX_FORMAT),
                    content,
                    bytes(-len(content) % _BLOCK),
                ]
                done = _end(member)
        return b"".join([*parts, raw[done:]])

    def _members(self, i: int, raw: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes | str]]:
        """The members of a record's bytes with their content; for a link without one, what is wrong with it."""
        for member in _Walk(_Bounded(io.BytesIO(raw), len(raw), self.record_bytes), len(raw)):
            found = self._links.get((i, member.name))
            if not (member.islnk() or member.issym()):
                yield member, raw[member.offset_data : member.offset_data + member.size]
            elif found is None:
                yield member, "is a link that was not there when the file was indexed"
            elif found.problem is not None:
                yield member, found.problem
            elif found.size > self.record_bytes:
                yield member, f"links to {found.size:,} bytes, the limit is {self.record_bytes:,} (limits.record_bytes)"
            else:
                yield member, self._opened().bytes(found.offset, found.size)


class _Bounded:
    """A file for ``tarfile``: no read takes more memory than there are bytes, whatever a header claims."""

    def __init__(self, file: BinaryIO, size: int, limit: int) -> None:
        self._file, self._size, self._limit = file, size, limit

    def read(self, size: int) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        if size > min(left + _BLOCK, self._limit):
            raise tarfile.ReadError(f"a header claims {size:,} bytes, and {left:,} are left")
        return self._file.read(min(size, left))

    def at(self, offset: int, size: int) -> bytes:
        place = self._file.tell()
        self._file.seek(offset)
        content = self._file.read(size)
        self._file.seek(place)
        return content

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()


class _Walk:
    """The files and links of an archive, in order.

    Attributes:
        damage: after the walk, what ended it before the archive's own end; ``None`` where nothing did.
        damaged_key: of the record that the damage is in; empty between records, ``None`` where it is not known.
    """

    def __init__(self, archive: _Bounded, size: int) -> None:
        self._archive, self._size = archive, size
        self.damage: str | None = None
        self.damaged_key: str | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        self._archive.seek(0)
        end = 0
        try:
            with tarfile.open(fileobj=self._archive, mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # or the list of all members stays in memory
                    self.damaged_key = split_name(member.name)[0]
                    if _end(member) > self._size:
                        self.damage = f"{member.name} claims {member.size:,} bytes, and the file ends before"
                        return
                    if member.issparse():
                        self.damage = f"{member.name} is stored with holes, which is not read"
                        return
                    end, self.damaged_key = _end(member), None
                    if (member.isfile() or member.islnk() or member.issym()) and not _is_of_macos(member.name):
                        yield member
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            self.damage = f"byte {end:,}: {error or type(error).__name__}"
            return
        self._check_end(end)

    def _check_end(self, end: int) -> None:
        """An archive ends with zeros, or with the file; ``tarfile`` takes a header it cannot read for the end, too."""
        self._archive.seek(end)
        while end < self._size:
            block = self._archive.read(min(_BLOCK if self.damaged_key is None else 1 << 16, self._size - end))
            if not block.strip(b"\0"):
                self.damaged_key = ""  # the archive's own end was found
            if block.strip(b"\0"):
                self.damage = f"byte {end:,}: no header of a member, but there are more bytes"
                return
            end += len(block)


def _is_of_macos(name: str) -> bool:
    """Whether the member is what macOS adds to an archive: attributes of a file, beside it."""
    *folders, file = name.split("/")
    return file.startswith("._") or "__MACOSX" in folders


def _end(member: tarfile.TarInfo) -> int:
    size = 0 if member.islnk() or member.issym() else member.size
    return int(member.offset_data + -(-size // _BLOCK) * _BLOCK)


def _resolved(linked: list[tuple[int, tarfile.TarInfo]], walk: _Walk) -> dict[tuple[int, str], Content]:
    """Where the content of each link is, by record and name."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in walk:
        member.pax_headers = {}
        members.setdefault(posixpath.normpath(member.name), member)
    return {(record, member.name): _followed(member, members) for record, member in linked}


def _followed(link: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> Content:
    named = link.linkname
    for _ in range(MAX_LINKS):
        base = posixpath.dirname(link.name) if link.issym() else ""
        target = posixpath.normpath(posixpath.join(base, link.linkname))
        if target.startswith(("/", "..")):
            return Content(problem=f"links to {named!r}, outside the archive")
        found = members.get(target)
        if found is None:
            return Content(problem=f"links to {named!r}, which is not in the archive")
        if found.isfile():
            return Content(found.offset_data, found.size)
        link = found
    return Content(problem=f"links to {named!r}, which leads back to itself")


def split_name(member: str) -> tuple[str, str]:
    """Key and extension: the file name is cut at its first dot, folders belong to the key."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    key, _, extension = name.partition(".")
    return folder + slash + key, extension


def _in_order(record: dict[str, Any], field: str, members: list[str]) -> list[str]:
    """The record's media among the members: those that its JSON names, as it orders them, or else all.

    A JSON that names one file of another name, and has one member, was exported with the file's former name.

    Raises:
        BadRecord: ``other_members`` where members are missing, or the names in the JSON are none of theirs.
    """
    listed = flat_images(record.get(field)) or flat_images(record.get(field.removesuffix("s")))
    paths = [one.get("path") or one.get("url") if isinstance(one, dict) else one for one in listed]
    by_name = {posixpath.basename(member): member for member in members}
    found = [by_name.get(posixpath.basename(path)) if isinstance(path, str) else None for path in paths]
    ordered = [member for member in found if member is not None]
    if ordered and len(ordered) == len(listed):
        return ordered
    if ordered or (listed and not len(listed) == len(members) == 1):
        missing = ", ".join(str(path)[:60] for path, member in zip(paths, found, strict=True) if member is None)[:200]
        there = ", ".join(map(posixpath.basename, members))[:200]
        detail = f"the JSON names {missing}, and the members are {there}"
        raise BadRecord("other_members", detail, field)
    return sorted(members, key=lambda member: (_order(split_name(member)[1].lower()), split_name(member)[1].lower()))


def _order(extension: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them; one without a number before its first dot comes first."""
    stem = extension.rpartition(".")[0]
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", stem) if part]


def _identity(key: str, described: bytes) -> tuple[int, int]:
    """Of a record by the id in its JSON, or else by its key."""
    try:
        record = parse_object(described)
    except BadRecord:
        record = {}
    return identity(_with_id(record, key), partial(key.encode, "utf-8", "surrogatepass"))


def _with_id(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {**record, "id": key} if is_no_id(record.get("id")) else record


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Positions of the values that are there more than once."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)
