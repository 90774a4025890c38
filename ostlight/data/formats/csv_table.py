"""Tables in text: comma-separated (CSV) and tab-separated (TSV) files with a header row."""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ostlight.data.atomic import atomic_path
from ostlight.data.formats.source import RECORD_BYTES, RecordHashes, SpanSource, identity
from ostlight.errors import BadRecord, DataError

OTHER_DELIMITERS = ";\t|"
SUFFIXES = {".csv": ",", ".tsv": "\t"}
MAX_LINES = 10_000
"""Lines that one row may have."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than an image in base64


class CsvTable(SpanSource):
    """A row is a record; its fields are text, under the names that the first row gives. Empty cells are null.

    Cells may be quoted and then hold line breaks. Semicolons, tabs and bars are understood where the header has no
    comma.
    """

    name = "csv"
    stored = ("hashes", "kinds", "start", "size")
    framing = (b"", b"", b"")

    def __init__(self, path: Path, record_bytes: int = RECORD_BYTES) -> None:
        self._header = b""
        self.columns: list[str] = []
        self._delimiter = SUFFIXES.get(path.suffix.lower(), ",")
        super().__init__(path, record_bytes)

    def _details(self) -> Any:
        return {"header": self._header.decode("latin-1"), "columns": self.columns, "delimiter": self._delimiter}

    def _set_details(self, details: Any) -> None:
        self._header = details["header"].encode("latin-1")
        self.columns, self._delimiter = details["columns"], details["delimiter"]

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return path.suffix.lower() in SUFFIXES and bool(head.strip()) and b"\0" not in head.split(b"\n")[0]

    def _spans(self, hashes: RecordHashes) -> Iterator[tuple[int, int]]:
        with self.path.open("rb") as file:
            header = file.readline()
            self._header = header.removeprefix(_BYTE_ORDER_MARK)
            if self._delimiter == "," and b"," not in header:
                self._delimiter = next((other for other in OTHER_DELIMITERS if other.encode() in header), ",")
            try:
                names = self._cells(self._header)
            except (csv.Error, ValueError) as error:
                raise DataError(f"{self.path}: the first line is no header row: {error}", self.path) from error
            self.columns = [name.strip() for name in names]
            unnamed = [str(n) for n, name in enumerate(self.columns, start=1) if not name]
            if len(unnamed) > 1:
                raise DataError(f"{self.path}: columns {' and '.join(unnamed[:5])} have no name; name them", self.path)
            if len(set(self.columns)) != len(self.columns):
                raise DataError(f"{self.path}: two columns have the same name: {', '.join(self.columns)}", self.path)
            start = len(header)
            for raw in self._rows(file):
                if raw.strip():
                    try:
                        hashes.add(identity(self._record(raw), raw.strip))
                    except BadRecord:
                        hashes.add_unreadable()
                    yield start, len(raw)
                start += len(raw)

    def record(self, i: int) -> dict[str, Any]:
        raw = self.raw_within_limit(i)
        return self._unchanged(i, self._record(raw), raw.strip)

    def write(self, kept: Sequence[int], target: Path) -> None:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            file.write(self._header.rstrip(b"\r\n") + b"\n")
            for i in kept:
                file.write(self.raw(i).rstrip(b"\r\n") + b"\n")

    def _record(self, raw: bytes) -> dict[str, Any]:
        try:
            cells = self._cells(raw)
        except (csv.Error, ValueError) as error:
            raise BadRecord("bad_row", f"not a row of the table: {error}; it begins {raw[:60]!r}") from error
        if len(cells) != len(self.columns):
            detail = f"{len(cells)} cells where the header has {len(self.columns)}; it begins {raw[:60]!r}"
            raise BadRecord("bad_row", detail)
        return {name: cell if cell else None for name, cell in zip(self.columns, cells, strict=True)}

    def _rows(self, file: Iterable[bytes]) -> Iterator[bytes]:
        """The rows as they stand: a line, or several where a quoted cell holds line breaks.

        Lines are joined where this gives one row whose quotes are whole, of however many cells: the lines of a cell are
        no rows. Any other stray quote costs its own line, not those behind it.
        """
        lines, waiting = iter(file), deque[bytes]()
        while True:
            pending: list[bytes] = []
            is_open = False
            while not pending or (is_open and len(pending) < MAX_LINES):
                line = waiting.popleft() if waiting else next(lines, None)
                if line is None:
                    break
                pending.append(line)
                is_open ^= line.count(b'"') % 2 == 1
            if not pending:
                return
            if len(pending) > 1 and (is_open or not self._is_row(b"".join(pending))):
                waiting.extendleft(reversed(pending[1:]))
                pending = pending[:1]
            yield b"".join(pending)

    def _is_row(self, raw: bytes) -> bool:
        try:
            self._cells(raw)
        except (csv.Error, ValueError):
            return False
        return True

    def _cells(self, raw: bytes) -> list[str]:
        """The cells of one row.

        Raises:
            csv.Error, ValueError: the bytes are no row, or several.
        """
        text = io.StringIO(raw.decode("utf-8"), newline="")
        rows = list(csv.reader(text, delimiter=self._delimiter, strict=True))
        if len(rows) > 1:
            raise ValueError("it has lone carriage returns; save the file with LF (\\n) at the ends of lines")
        return rows[0] if rows else []
