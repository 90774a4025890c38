"""JSON lines: one object a line, blank lines between them allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ostlight.data.formats.source import RecordHashes, SpanSource

FIRST_LINES = 20
MAX_LINE_BYTES = 64 << 20
SKIP_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines(SpanSource):
    """A record is its line without the newline; a carriage return before it belongs to the record."""

    name = "jsonl"
    stored = ("hashes", "kinds", "start", "size")
    framing = (b"", b"\n", b"\n")

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        begin = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
        if (
            path.is_dir()
            or not begin
            or (b"\0" in head[:1024] and not _has_object(head.removeprefix(_BYTE_ORDER_MARK)))
        ):
            return False
        if path.suffix in (".jsonl", ".ndjson") and not begin.startswith(b"["):
            return True
        kinds = _first_lines(path)
        if path.suffix in (".jsonl", ".ndjson"):  # one line that is an array holds all records
            return kinds[0] == "value" and len(kinds) > 1
        if path.suffix != ".json" and kinds[0] != "object":
            return False
        if begin.startswith(b"["):  # an array, unless the first line is a whole one and objects follow
            return kinds[0] == "value" and "object" in kinds
        return "object" in kinds

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        position = 0
        with self.path.open("rb") as file:
            while line := file.readline(self.record_bytes + 2):
                start = position
                position += len(line)
                if len(line) > self.record_bytes and not line.endswith(b"\n"):
                    position += _skip_line(file)
                    hashes.add_unreadable()
                    yield start, position - start
                    continue
                if line.startswith(_BYTE_ORDER_MARK):  # in the middle, too, of files that were joined
                    start, line = start + len(_BYTE_ORDER_MARK), line.removeprefix(_BYTE_ORDER_MARK)
                line = line.removesuffix(b"\n")
                if line.strip():
                    hashes.add_json(line)
                    yield start, len(line)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line without keeping it; returns the bytes read."""
    skipped = 0
    while part := file.readline(SKIP_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _has_object(head: bytes) -> bool:
    """Whether a file that holds zero bytes has objects in lines: a crash leaves such bytes among good lines."""
    lines = [line for line in head.split(b"\n") if line.strip(b"\0 \t\r")]
    begins = [line.lstrip(b"\0 \t\r").startswith(b"{") for line in lines]
    return any(begins[:1]) and any(begin and b"\0" not in line for line, begin in zip(lines, begins, strict=True))


def _first_lines(path: Path) -> list[str]:
    """What each of the first lines holds: ``object``, another JSON ``value``, or ``text``; at least one."""
    kinds: list[str] = []
    with path.open("rb") as file:
        while len(kinds) < FIRST_LINES and (line := file.readline(MAX_LINE_BYTES)):
            if line.removeprefix(_BYTE_ORDER_MARK).strip():
                kinds.append(_kind(line.removeprefix(_BYTE_ORDER_MARK)))
    return kinds or ["text"]


def _kind(line: bytes) -> str:
    try:
        return "object" if isinstance(json.loads(line), dict) else "value"
    except (ValueError, RecursionError):
        return "text"
