"""JSON lines: one object a line, blank lines between them allowed."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

from ostlight.data.atomic import atomic_path
from ostlight.data.formats.source import Keys, SpanSource

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines(SpanSource):
    """A record is its line without the newline; a carriage return before it belongs to the record."""

    name = "jsonl"

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        lines = [line for line in head.removeprefix(_BYTE_ORDER_MARK).splitlines() if line.strip()]
        if not lines or not lines[0].lstrip().startswith(b"{"):
            return False
        if path.suffix in (".jsonl", ".ndjson"):
            return True
        return any(_is_object(line) for line in lines[:20])

    def _index(self, starts: array[int], sizes: array[int], keys: Keys) -> None:
        position = 0
        with self.path.open("rb") as file:
            for line in file:
                start = position
                position += len(line)
                if start == 0 and line.startswith(_BYTE_ORDER_MARK):
                    start, line = len(_BYTE_ORDER_MARK), line.removeprefix(_BYTE_ORDER_MARK)
                line = line.removesuffix(b"\n")
                if not line.strip():
                    continue
                starts.append(start)
                sizes.append(len(line))
                keys.add_json(line)

    def write(self, kept: Sequence[int], target: Path) -> None:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for i in kept:
                file.write(self.raw(i) + b"\n")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
