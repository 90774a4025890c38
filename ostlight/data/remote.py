"""Files that lie elsewhere: ``s3://``, ``gs://``, ``hf://``, ``https://`` and whatever else fsspec knows.

``path_of`` gives a path for any name. A remote one is read in blocks, or whole where a library wants a local file;
what was read lies in a local cache of bounded size.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, TypeVar

from ostlight.data.remote_cache import cache_folder, cached, read_cached
from ostlight.data.remote_server import FileInfo, file_info, filesystem_of, refuse_short, retried
from ostlight.errors import DataError

T = TypeVar("T")

BLOCK_BYTES = 8 << 20
MAX_INFOS = 200_000
"""Files whose size, time and version are remembered."""

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+")


def is_remote(named: str | Path) -> bool:
    """Whether a name is an address of a file that lies elsewhere."""
    return isinstance(named, RemotePath) or (
        isinstance(named, str) and _URL.match(named) is not None and not named.lower().startswith("file:")
    )


def path_of(named: str | Path) -> Path:
    """Returns the path that a setting names, remote or local."""
    if isinstance(named, Path):
        return named
    if is_remote(named):
        return RemotePath(named)
    return Path(named.removeprefix("file://"))


_infos: dict[str, FileInfo] = {}
"""What is known of files by now, by address; see ``forget``."""


def forget() -> None:
    """Ask the servers again what their files are; called whenever a pool is opened."""
    for scheme in {address.partition(":")[0].lower() for address in _infos}:
        import fsspec

        fsspec.get_filesystem_class(scheme).clear_instance_cache()  # with the listings that it remembers
    _infos.clear()


class RemotePath(PosixPath):
    """The address of a remote file as a path, for reading.

    Methods raise ``FileNotFoundError`` where nothing is there, ``PermissionError`` where credentials are missing or not
    enough (it says what to set), and ``OSError`` after several attempts that failed otherwise.
    """

    def __str__(self) -> str:
        return _URL.sub(r"\1://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        """The path of a whole local copy, for libraries that read local files."""
        return str(self._whole())

    def info(self) -> FileInfo:
        """What the server says of the file."""
        address = str(self)
        if len(_infos) > MAX_INFOS:
            _infos.clear()
        if address not in _infos:
            _infos[address] = file_info(self._call("info"))
        return _infos[address]

    def version(self) -> str:
        """A name for what the file holds, from what the server says of it: no byte of it is read.

        Empty where the server tells neither time nor version.
        """
        info = self.info()
        return f"{info.size} bytes, {info.version or info.modified}" if info.version or info.modified else ""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self.info()
        mode = stat.S_IFDIR | 0o555 if info.is_folder else stat.S_IFREG | 0o444
        seconds = info.modified // 1_000_000_000
        inode = int.from_bytes(hashlib.blake2b(info.version.encode(), digest_size=7).digest(), "big")
        values = (mode, inode, 0, 1, 0, 0, max(0, info.size), seconds, seconds, seconds)
        return os.stat_result(values, {"st_mtime_ns": info.modified})

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        try:
            self.info()
        except FileNotFoundError:
            return False
        return True

    def is_file(self) -> bool:
        return self.exists() and not self.info().is_folder

    def is_dir(self) -> bool:
        return self.exists() and self.info().is_folder

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def iterdir(self) -> Generator[RemotePath, None, None]:
        yield from self._listed(self._call("ls", detail=True))

    def glob(self, pattern: str) -> Generator[RemotePath, None, None]:
        yield from (self / pattern).matches()

    def rglob(self, pattern: str) -> Generator[RemotePath, None, None]:
        if pattern == "*":
            yield from self._listed(self._call("find", detail=True).values())
        else:
            yield from self.glob(f"**/{pattern}")

    def matches(self) -> list[RemotePath]:
        """The files that the path names as a pattern, by name."""
        return self._listed(self._call("glob", detail=True).values())

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode == "rb":
            return io.BufferedReader(_Raw(Blocks(self)), BLOCK_BYTES)
        if mode in ("r", "rt"):
            return io.StringIO(self.read_text())
        raise io.UnsupportedOperation(f"{self} can only be read")

    def read_bytes(self) -> bytes:
        return read_cached(self._whole(), lambda: self._fetch(None))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def block(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of the file, from the cache or from the server."""

        def fetch() -> bytes:
            return self._fetch((start, stop))

        version = self.version()
        if not version:
            return fetch()
        data = read_cached(cached(f"{self} {version} {start}-{stop}", fetch), fetch)
        return data if len(data) == stop - start else fetch()  # damaged, or of an earlier version

    def _whole(self) -> Path:
        """A local copy, by version; where the server tells none, the file is fetched anew and named by its content."""
        if version := self.version():
            return cached(f"{self} {version}", lambda: self._fetch(None))
        data = self._fetch(None)
        return cached(f"{self} {hashlib.sha256(data).hexdigest()}", lambda: data)

    def _fetch(self, part: tuple[int, int] | None) -> bytes:
        """The bytes of a part, or of the whole file; never fewer than the server says there are."""
        (start, end), size = part or (None, None), self.info().size
        filesystem, path = filesystem_of(str(self))

        def fetch() -> bytes:
            data = bytes(filesystem.cat_file(path, start=start, end=end))
            if part is not None and len(data) > part[1] - part[0]:  # a server without ranges sends the whole file
                data = data[start:end]
            refuse_short(len(data), size if part is None else part[1] - part[0])
            return data

        return retried(str(self), fetch)

    def _listed(self, entries: Iterable[Any]) -> list[RemotePath]:
        found = []
        for entry in entries:
            path = _address(str(self), str(entry["name"]))
            _infos[str(path)] = file_info(entry)
            if path != self:
                found.append(path)
        return sorted(found)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The result of a method of fsspec's file system, after several attempts where it fails for the moment."""
        address = str(self)
        filesystem, path = filesystem_of(address)
        return retried(address, lambda: getattr(filesystem, method)(path, *arguments, **options))


class Blocks:
    """A remote file read at any position, block by block; the last block stays in memory."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self.size = path, path.info().size
        if self.size < 0:  # no length, so no ranges: read whole
            self._whole: bytes | None = path.read_bytes()
            self.size = len(self._whole)
        else:
            self._whole = None
        self._number, self._block = -1, b""

    def bytes(self, start: int, size: int) -> bytes:
        """At most ``size`` bytes from ``start`` on; fewer at the end of the file."""
        stop = min(start + size, self.size)
        if self._whole is not None:
            return self._whole[start:stop]
        parts = []
        while start < stop:
            number = start // BLOCK_BYTES
            if number != self._number:
                begin = number * BLOCK_BYTES
                self._block = self.path.block(begin, min(begin + BLOCK_BYTES, self.size))
                self._number = number
            part = self._block[start - number * BLOCK_BYTES : stop - number * BLOCK_BYTES]
            parts.append(part)
            start += len(part)
        return b"".join(parts)


class _Raw(io.RawIOBase):
    """Blocks as a file."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._position = blocks, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blocks.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._blocks.bytes(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def local_model(named: str) -> str:
    """Returns what ``from_pretrained`` takes for a model: a local copy of a remote folder; any other name as it is.

    Raises:
        DataError: a remote folder that cannot be read.
    """
    return str(fetch_folder(named)) if is_remote(named) else named


def fetch_folder(named: str) -> Path:
    """Returns a local copy of a remote folder, such as a model's; one that is there and still the same is used again.

    One copy of each folder is kept, beside the files that the cache's limit counts.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    folder = RemotePath(named)
    try:
        files = [file for file in folder.rglob("*") if not file.info().is_folder]
        if not files:
            raise DataError(f"{named} holds no file", named)
        state = "".join(f"{file} {file.version()}\n" for file in files)
        name = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        target = cache_folder() / "folders" / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        if target.is_dir():
            return target
        for older in target.parent.glob(f"{name}-*"):
            shutil.rmtree(older, ignore_errors=True)
        temporary = target.with_name(f"{os.getpid()}.{target.name}")
        for file in files:
            copy = temporary / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            retried(str(file), partial(_copy, file, copy))
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
    except OSError as error:
        raise DataError(f"cannot read {named}: {error.strerror or error}", named) from error
    return target


def _copy(file: RemotePath, copy: Path) -> None:
    filesystem, path = filesystem_of(str(file))
    filesystem.get_file(path, str(copy))
    refuse_short(copy.stat().st_size, file.info().size)


def _address(base: str, name: str) -> RemotePath:
    """The address of an entry, which fsspec names without the scheme."""
    found = _URL.match(name)
    if found is not None:
        return RemotePath(name)
    return RemotePath(f"{base.partition(':')[0]}://{name.lstrip('/')}")


def place(path: Path) -> PurePosixPath:
    """The absolute place of a file, by which remote and local files can be compared: ``/s3:/bucket/a.jsonl``."""
    return PurePosixPath("/", *(part for part in path.absolute().parts if part != path.anchor))
