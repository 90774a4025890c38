"""Folders that Hugging Face's ``Dataset.save_to_disk`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.data.formats.columns import cut_row, hash_rows, row
from ostlight.data.formats.source import Source
from ostlight.errors import DataError

STATE, INFO = "state.json", "dataset_info.json"
HASH_ROWS, WRITE_ROWS = 64, 256


class HuggingFaceFolder(Source):
    """A row is a record. The Arrow files are mapped into memory, not read.

    The ``datasets`` package is not needed, neither to read nor to write.
    """

    name = "hf"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
            if self._state.get("_indices_files") or self._state.get("_indices_data_files"):
                raise DataError(f"{path} is a view of another data set; write it with flatten_indices() first", path)
            self._data_files = [path / entry["filename"] for entry in self._state["_data_files"]]
            tables = self._opened()
            self.hashes, self.kinds = hash_rows(tables[0].schema, self._batches).arrays()
        except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a whole save_to_disk folder: {error}", path) from error
        self.table_start = np.concatenate([[0], np.cumsum([t.num_rows for t in tables])]).astype(np.int64)
        self.close()

    @staticmethod
    def recognizes(path: Path, head: bytes) -> bool:
        return path.is_dir() and (path / STATE).is_file() and (path / INFO).is_file()

    def files(self) -> list[Path]:
        return [*self._data_files, self.path / INFO]

    @property
    def folder(self) -> Path:
        return self.path

    def record(self, i: int) -> dict[str, Any]:
        table, k = self._at(i)
        return row(table, k)

    def write(self, kept: Sequence[int], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        data = "data-00000-of-00001.arrow"
        schema = self._opened()[0].schema
        with atomic_path(target / data) as temporary, pa.ipc.new_stream(temporary, schema) as writer:
            for begin in range(0, len(kept), WRITE_ROWS):
                rows = [cut_row(table, k) for table, k in map(self._at, kept[begin : begin + WRITE_ROWS])]
                writer.write_table(pa.concat_tables(rows).combine_chunks())
        atomic_write_text(target / INFO, self._info())
        # Last, because a folder without its state is not taken for a data set.
        state = {**self._state, "_data_files": [{"filename": data}], "_fingerprint": f"ostlight{len(kept):08x}"}
        atomic_write_text(target / STATE, json.dumps(state, indent=2))

    def _info(self) -> str:
        """The data set's own description, without the sizes that no longer hold."""
        info = json.loads((self.path / INFO).read_text(encoding="utf-8"))
        sizes = ("splits", "download_size", "dataset_size", "size_in_bytes", "download_checksums")
        return json.dumps({k: v for k, v in info.items() if k not in sizes}, indent=2)

    def _batches(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for table in self._opened():
            yield from (table.select(columns) if columns else table).to_batches(max_chunksize=HASH_ROWS)

    def _at(self, i: int) -> tuple[pa.Table, int]:
        n = int(np.searchsorted(self.table_start, i, side="right")) - 1
        return self._opened()[n], int(i - self.table_start[n])

    def _open(self) -> list[pa.Table]:
        return [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in self._data_files]
