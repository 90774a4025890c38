"""A JSON file that is one array of records, with any white space and line breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ostlight.data.formats.source import RecordHashes, SpanSource
from ostlight.errors import DataError

CHUNK_BYTES = 1 << 20

# A whole string, or a structural character. A lone quote begins a string that ends beyond the bytes read so far.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)


class JsonArray(SpanSource):
    """A record is a top-level element's exact bytes, without the white space and commas around it."""

    name = "json"
    framing = (b"[\n", b",\n", b"\n]\n")

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        with self.path.open("rb") as file:
            try:
                for start, element in top_level_elements(file):
                    hashes.add_json(element)
                    yield start, len(element)
            except ValueError as error:
                raise DataError(f"{self.path} is not a whole JSON array: {error}", self.path) from error


def top_level_elements(file: BinaryIO, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """First byte and exact bytes of each element of the array a file holds; memory for one element and one chunk.

    Elements are separated by brackets, strings and commas only, so one that is broken inside does not stop the rest.

    Raises:
        ValueError: the file is no array, the array is never closed, or something follows it.
    """
    buffer = b""
    base = 0  # where the buffer starts in the file
    scanned = 0  # bytes of the buffer that are done with
    begin = 0  # where the current element starts in the buffer
    depth = 0
    closed = False
    while chunk := file.read(max(chunk_bytes, len(buffer))):
        buffer += chunk
        for token in _TOKEN.finditer(buffer, scanned):
            sign = token[0]
            if sign == b'"':
                scanned = token.start()
                break
            scanned = token.end()
            if depth == 0 and (closed or sign != b"["):
                raise ValueError(f"byte {base + token.start()} has {sign[:20]!r} outside the array")
            if sign in b"[{":
                depth += 1
                begin = scanned if depth == 1 else begin
            elif sign in b"]}":
                depth -= 1
                if depth == 0:
                    closed = True
                    if buffer[begin : token.start()].strip():
                        yield _trimmed(buffer, base, begin, token.start())
            elif sign == b"," and depth == 1:
                yield _trimmed(buffer, base, begin, token.start())
                begin = scanned
        else:
            scanned = len(buffer)
        done = begin if depth else scanned
        buffer, base, scanned, begin = buffer[done:], base + done, scanned - done, 0
    if not closed:
        raise ValueError(f"the end is missing; the last whole element ends before byte {base}")


def _trimmed(buffer: bytes, base: int, begin: int, end: int) -> tuple[int, bytes]:
    element = buffer[begin:end]
    inner = element.lstrip()
    return base + begin + len(element) - len(inner), inner.rstrip()
