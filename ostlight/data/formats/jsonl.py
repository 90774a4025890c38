"""JSON lines: one object a line, blank lines between them allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ostlight.data.formats.source import RecordHashes, SpanSource

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines(SpanSource):
    """A record is its line without the newline; a carriage return before it belongs to the record."""

    name = "jsonl"
    framing = (b"", b"\n", b"\n")

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        lines = [line for line in head.removeprefix(_BYTE_ORDER_MARK).splitlines() if line.strip()]
        if not lines or not lines[0].lstrip().startswith(b"{"):
            return False
        if path.suffix in (".jsonl", ".ndjson"):
            return True
        return any(_is_object(line) for line in lines[:20])

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        position = 0
        with self.path.open("rb") as file:
            for line in file:
                start = position
                position += len(line)
                if start == 0 and line.startswith(_BYTE_ORDER_MARK):
                    start, line = len(_BYTE_ORDER_MARK), line.removeprefix(_BYTE_ORDER_MARK)
                line = line.removesuffix(b"\n")
                if line.strip():
                    hashes.add_json(line)
                    yield start, len(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
