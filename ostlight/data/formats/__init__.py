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
from ostlight.errors import DataError

FORMATS: dict[str, type[Source]] = {
    source.name: source for source in (JsonLines, JsonArray, Parquet, HuggingFaceFolder, WebDataset, CsvTable)
}
HEAD_BYTES = 1 << 16
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
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the text is UTF-16; save it as UTF-8"
    if head.lstrip().startswith(b"{"):
        return described_object(path)
    return f"the format is unknown; the file begins {head[:60].decode('utf-8', 'replace')!r}"


def described_object(path: Path) -> str:
    """What to do with a file that is one JSON object where records are expected."""
    with path.open("rb") as file:
        content = file.read(MAX_OBJECT_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        begin = repr(content[:60].decode("utf-8", "replace"))
        return f"the file is neither one JSON array nor JSON lines; it begins {begin}"
    entries = {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}
    named = {name: entry for name, entry in entries.items() if isinstance(entry, dict) and entry.get("annotation")}
    if named:  # InternVL's list of data sets
        pools = [f"{{path: {e['annotation']}, image_root: {e.get('root')}}}" for e in named.values()]
        listed = ", ".join(pools)[:600]
        return (
            f"the file is a list of data sets ({', '.join(named)[:200]}), no pool; name them in pool.path: [{listed}]"
        )
    lists = [
        name for name, entry in entries.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)
    ]
    if lists:
        return f"the file is one JSON object; save its list {lists[0]!r} as a file of its own"
    return ONE_OBJECT
