"""A JSON file that is one array of records, with any white space and line breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ostlight.data.formats.source import RECORD_BYTES, RecordHashes, SpanSource
from ostlight.errors import DataError

CHUNK_BYTES = 1 << 20

# A whole string, or a structural character. A lone quote begins a string that ends beyond the bytes read so far.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)

_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class JsonArray(SpanSource):
    """A record is a top-level element's exact bytes, without the white space and commas around it."""

    name = "json"
    stored = ("hashes", "kinds", "start", "size")
    framing = (b"[\n", b",\n", b"\n]\n")

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        with self.path.open("rb") as file:
            try:
                for start, element in top_level_elements(file, max_bytes=self.record_bytes):
                    if isinstance(element, int):
                        hashes.add_unreadable()
                        yield start, element
                    else:
                        hashes.add_json(element)
                        yield start, len(element)
            except ValueError as error:
                raise DataError(f"{self.path} is not a whole JSON array: {error}", self.path) from error


def top_level_elements(
    file: BinaryIO, chunk_bytes: int = CHUNK_BYTES, max_bytes: int = RECORD_BYTES
) -> Iterator[tuple[int, bytes | int]]:
    """First byte and exact bytes of each element of the array a file holds; memory for one element and one chunk.

    Elements are separated by brackets, strings and commas only, so one that is broken inside does not stop the rest.
    Of an element of more than ``max_bytes``, the number of bytes comes instead of the bytes.

    Raises:
        ValueError: the file is no array, the array is never closed, or something follows it.
    """
    buffer = b""
    base = 0  # where the buffer starts in the file
    scanned = 0  # bytes of the buffer that are done with
    begin = 0  # where the current element starts in the file
    depth = 0
    closed = False
    end = 0  # where the array ends in the file
    in_string = False  # inside a string whose beginning is no longer in the buffer
    while chunk := file.read(max(chunk_bytes, min(len(buffer), max_bytes))):
        buffer += chunk
        if in_string:
            scanned = _end_of_string(buffer, scanned)
            in_string = buffer[scanned : scanned + 1] != b'"'
            scanned += not in_string
        for token in () if in_string else _TOKEN.finditer(buffer, scanned):
            sign, place = token[0], base + token.start()
            if sign == b'"':
                scanned = token.start()
                break
            scanned = token.end()
            if depth == 0 and (closed or sign != b"["):
                raise ValueError(f"byte {place} has {sign[:20]!r} outside the array")
            if sign in b"[{":
                depth += 1
                begin = base + scanned if depth == 1 else begin
            elif sign in b"]}":
                depth -= 1
                if depth == 0:
                    closed, end = True, base + scanned
                    if begin < base or buffer[begin - base : token.start()].strip():
                        yield _element(buffer, base, begin, place, max_bytes)
            elif sign == b"," and depth == 1:
                yield _element(buffer, base, begin, place, max_bytes)
                begin = base + scanned
        else:
            scanned = scanned if in_string else len(buffer)
        if closed and (rest := buffer[max(end - base, 0) :].lstrip()):
            raise ValueError(f"byte {base + len(buffer) - len(rest)} has {rest[:20]!r} outside the array")
        done = max(begin - base, 0) if depth else scanned
        if depth and len(buffer) - done > max_bytes:  # too large: from here on it is counted, not kept
            if not in_string and buffer[scanned : scanned + 1] == b'"':
                in_string, scanned = True, _end_of_string(buffer, scanned + 1)
            done = scanned
        buffer, base, scanned = buffer[done:], base + done, scanned - done
    if not closed:
        raise ValueError(f"the end is missing; the last whole element ends before byte {base}")


def _end_of_string(buffer: bytes, start: int) -> int:
    """Where a string's closing quote is, or the first byte that needs more bytes to be understood."""
    found = _STRING_REST.match(buffer, start)
    assert found is not None, "it matches nothing, too"
    return found.end()


def _element(buffer: bytes, base: int, begin: int, end: int, max_bytes: int) -> tuple[int, bytes | int]:
    if begin < base or end - begin > max_bytes:
        return begin, end - begin
    element = buffer[begin - base : end - base]
    inner = element.lstrip()
    return begin + len(element) - len(inner), inner.rstrip()
