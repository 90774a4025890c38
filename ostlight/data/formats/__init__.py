"""File formats: one module for each, recognized by what a file holds and not by its name."""

from __future__ import annotations

from pathlib import Path

from ostlight.data.formats.hf_disk import HuggingFaceFolder
from ostlight.data.formats.json_array import JsonArray
from ostlight.data.formats.jsonl import JsonLines
from ostlight.data.formats.parquet import Parquet
from ostlight.data.formats.source import Source
from ostlight.data.formats.webdataset import WebDataset
from ostlight.errors import DataError

FORMATS: dict[str, type[Source]] = {
    source.name: source for source in (JsonLines, JsonArray, Parquet, HuggingFaceFolder, WebDataset)
}
HEAD_BYTES = 1 << 16

__all__ = ["FORMATS", "HuggingFaceFolder", "JsonArray", "JsonLines", "Parquet", "Source", "WebDataset", "open_source"]


def open_source(path: Path, format: str | None = None) -> Source:
    """Index one file, or one ``save_to_disk`` folder.

    Args:
        path: must exist.
        format: a name of ``FORMATS``; ``None`` recognizes it by the content.

    Raises:
        DataError: the content is of no known format, is damaged, or holds no record.
    """
    try:
        found = _recognized(path) if format is None else FORMATS[format]
        source = found(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", path) from error
    if not len(source):
        raise DataError(f"{path} holds no record ({found.name})", path)
    return source


def _recognized(path: Path) -> type[Source]:
    head = b""
    if not path.is_dir():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    for source in FORMATS.values():
        if source.recognizes(path, head):
            return source
    raise DataError(f"{path}: {_described(path, head)}. Known formats: {', '.join(FORMATS)}.", path)


def _described(path: Path, head: bytes) -> str:
    if path.is_dir():
        return "a folder that save_to_disk did not write"
    if not head.strip():
        return "the file is empty"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "the file is compressed, so no record can be reached without unpacking all before it; unpack it first"
    return f"the format is unknown; the file begins {head[:60].decode('utf-8', 'replace')!r}"
