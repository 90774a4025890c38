"""File formats: one module for each, recognized by what a file holds and not by its name."""

from __future__ import annotations

import json
from pathlib import Path

from ostlight.data.formats.csv_table import CsvTable
from ostlight.data.formats.hf_disk import HuggingFaceFolder
from ostlight.data.formats.json_array import JsonArray
from ostlight.data.formats.jsonl import JsonLines
from ostlight.data.formats.parquet import Parquet
from ostlight.data.formats.source import RECORD_BYTES, Source
from ostlight.data.formats.webdataset import WebDataset
from ostlight.data.layouts import layout_of
from ostlight.errors import DataError

FORMATS: dict[str, type[Source]] = {
    source.name: source for source in (JsonLines, JsonArray, Parquet, HuggingFaceFolder, WebDataset, CsvTable)
}
HEAD_BYTES = 1 << 16
_COMPRESSED = "the file is compressed, so no record can be reached without unpacking all before it; unpack it first"
_ARROW = "it is an Arrow file; name the folder that save_to_disk wrote, or write it as Parquet"
_NOT_READ = {
    b"\x1f\x8b": _COMPRESSED, b"BZh": _COMPRESSED, b"\xfd7zXZ": _COMPRESSED, b"\x28\xb5\x2f\xfd": _COMPRESSED,
    b"\x04\x22\x4d\x18": _COMPRESSED, b"7z\xbc\xaf": _COMPRESSED,
    b"PK\3\4": "it is a ZIP archive (as .xlsx and .npz files are); unpack it, or save the table as CSV",
    b"\xff\xfe\0\0": "the text is UTF-32; save it as UTF-8", b"\0\0\xfe\xff": "the text is UTF-32; save it as UTF-8",
    b"\xff\xfe": "the text is UTF-16; save it as UTF-8", b"\xfe\xff": "the text is UTF-16; save it as UTF-8",
    b"{\0": "the text is UTF-16; save it as UTF-8", b"[\0": "the text is UTF-16; save it as UTF-8",
    b"version https://git-lfs": "it is a pointer of Git LFS, and the content was not fetched; run `git lfs pull`",
    b"ARROW1": _ARROW, b"\xff\xff\xff\xff": _ARROW,
    b"ORC": "it is an ORC file; write it as Parquet", b"\x89HDF": "it is an HDF5 file; write it as Parquet",
    b"SQLite format 3": "it is an SQLite database; save the table as CSV or Parquet",
    b"PARE": "it is an encrypted Parquet file; write it without encryption",
    b"\x80\4\x95": "it is a pickle, which is not read because it can run code; save the records as JSON lines",
    b"<!DOCTYPE": "it is a web page, as servers send in the place of a file; fetch it again",
    b"<html": "it is a web page, as servers send in the place of a file; fetch it again",
}  # fmt: skip
"""Beginnings of files that hold no records that can be read, and what to do."""
_MAX_LINK = 4096
MAX_OBJECT_BYTES = 64 << 20
ONE_OBJECT = "the file is one JSON object, where a JSON array or one object a line is expected"

__all__ = [
    "FORMATS",
    "ONE_OBJECT",
    "CsvTable",
    "HuggingFaceFolder",
    "JsonArray",
    "JsonLines",
    "Parquet",
    "Source",
    "WebDataset",
    "described_object",
    "open_source",
]


def open_source(path: Path, format: str | None = None, record_bytes: int = RECORD_BYTES) -> Source:
    """Index one file, or one ``save_to_disk`` folder.

    Args:
        path: must exist.
        format: a name of ``FORMATS``; ``None`` recognizes it by the content.
        record_bytes: a record of more is rejected before it is read.

    Raises:
        DataError: the content is of no known format, is damaged, or holds no record.
    """
    try:
        found = _recognized(path) if format is None else FORMATS[format]
        source = found(path, record_bytes)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", path) from error
    except Exception as error:  # the libraries that parse it raise whatever damaged bytes lead to
        raise DataError(f"{path} is damaged: {type(error).__name__}: {str(error)[:300]}", path) from error
    if not len(source):
        raise DataError(f"{path} holds no record ({found.name})", path)
    return source


def _recognized(path: Path) -> type[Source]:
    head = b""
    if not path.is_dir():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not head.strip():
            raise DataError(f"{path} is empty; remove it, or write it again", path)
    for begin, why in _NOT_READ.items():
        if head.startswith(begin):
            raise DataError(f"{path}: {why}", path)
    for source in FORMATS.values():
        if source.recognizes(path, head):
            return source
    raise DataError(f"{path}: {_described(path, head)}. Known formats: {', '.join(FORMATS)}.", path)


def _described(path: Path, head: bytes) -> str:
    if path.is_dir():
        return "a folder that save_to_disk did not write"
    if not head.strip(b"\0"):
        return "the file holds zeros alone; write or fetch it again"
    if head.lstrip().startswith(b"{"):
        return described_object(path)
    if (link := _link_as_text(path, head)) is not None:
        return link
    return f"the format is unknown; the file begins {head[:60].decode('utf-8', 'replace')!r}"


def _link_as_text(path: Path, content: bytes) -> str | None:
    named = content[:_MAX_LINK].strip().decode("utf-8", "replace")
    if len(content) >= _MAX_LINK or len(named.split()) != 1 or "\0" in named or not (path.parent / named).exists():
        return None
    return f"the file holds the path {named!r} alone, as a link does that was copied as text; name that file"


def described_object(path: Path) -> str:
    """What to do with a file that is one JSON object where records are expected."""
    with path.open("rb") as file:
        content = file.read(MAX_OBJECT_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        if (zero := content.find(b"\0")) >= 0:
            return f"the file holds zero bytes (NUL), the first at byte {zero:,}; write or fetch it again"
        begin = repr(content[:60].decode("utf-8", "replace"))
        return _link_as_text(path, content) or f"the file is neither one JSON array nor JSON lines; it begins {begin}"
    entries = {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}
    named = {name: entry for name, entry in entries.items() if isinstance(entry, dict) and entry.get("annotation")}
    if named:  # InternVL's list of data sets
        pools = [f"{{path: {e['annotation']}, image_root: {e.get('root')}}}" for e in named.values()]
        listed = ", ".join(pools)[:600]
        return (
            f"the file is a list of data sets ({', '.join(named)[:200]}), no pool; name them in pool.path: [{listed}]"
        )
    if entries and layout_of(entries) is not None:
        return "the file is one record over several lines; put it into brackets: [...]"
    lists = [
        name
        for name, entry in entries.items()
        if isinstance(entry, list) and entry and isinstance(entry[0], dict) and not {"role", "from"} & entry[0].keys()
    ]
    if lists:
        return f"the file is one JSON object; save its list {lists[0]!r} as a file of its own"
    return ONE_OBJECT
