"""Writes the scores: a shard's file appears complete, by rename, or not at all."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import BasePredictionWriter

from ostlight.data.checked_parquet import is_whole, write_parquet
from ostlight.errors import DataError
from ostlight.pipeline.images_read import ImageRead, forget_images, without_records, write_images
from ostlight.pipeline.scoring.rows import Row, rejected_row, to_table
from ostlight.pipeline.scoring.stream import ShardBatch
from ostlight.selection.score_files import ScoreFiles


def part(folder: Path, shard: int) -> Path:
    """Returns the file of one shard."""
    return folder / f"part-{shard:06d}.parquet"


def missing_shards(folder: Path, shards: int) -> list[int]:
    """Returns the numbers of the shards that have no file yet, or a damaged one."""
    return [s for s in range(shards) if not is_whole(part(folder, s))]


class ShardWriter(BasePredictionWriter):
    """Collects a shard's rows and writes them when its last batch is scored.

    Where the shard has a file, the rows replace those of the same records.

    Args:
        folder: gets the score table.
        images: gets the image files that the shards were made from.
    """

    def __init__(self, folder: Path, images: Path) -> None:
        super().__init__("batch")
        self.folder, self.images = folder, images
        self._open: defaultdict[int, list[Row]] = defaultdict(list)
        self._images: defaultdict[int, list[ImageRead]] = defaultdict(list)
        folder.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: ShardBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        rows = self._open[batch.shard]
        rows += prediction
        rows += [rejected_row(*r) for r in batch.rejections]
        self._images[batch.shard] += batch.images
        if batch.is_last:
            file, images = part(self.folder, batch.shard), part(self.images, batch.shard)
            table = to_table(rows)
            if is_whole(file):
                # Until its new row is written a record has no images: an end between these steps is no reason to
                # take it for one that was rejected with the images of now.
                forget_images(table["position"], images)
                table = _with_rows_before(table, file)
                write_parquet(table, file)
                write_images(self._images.pop(batch.shard), images)
            else:  # a shard that has a score file is complete
                write_images(self._images.pop(batch.shard), images)
                write_parquet(table, file)
            del self._open[batch.shard]


def _with_rows_before(rows: pa.Table, file: Path) -> pa.Table:
    """Returns the rows of a file, with ``rows`` in the place of those at the same positions."""
    before = pq.read_table(file)
    kept = without_records(before, rows["position"])
    names = [*before.column_names, *(name for name in rows.column_names if name not in before.column_names)]
    return pa.concat_tables([kept, rows], promote_options="permissive").select(names).sort_by("position")


def audit(folder: Path, records: int) -> str:
    """Checks that every record of the pool has exactly one row, and returns one line that says so.

    Raises:
        DataError: rows are missing or double; names the first of them.
    """
    files = ScoreFiles(folder)
    assert files.schema.names, "asked for first: it refuses files that do not fit together"
    (found,) = files.query(
        "SELECT count(*) AS rows, count(DISTINCT position) AS records, min(position) AS first, max(position) AS last "
        "FROM scores"
    ).to_pylist()
    if found != {"rows": records, "records": records, "first": 0, "last": records - 1}:
        missing = files.query(
            f"SELECT range AS position FROM range({records}) ANTI JOIN scores ON range = position ORDER BY position"
        )["position"]
        raise DataError(
            f"{folder}: {len(missing)} of {records} records have no row (first: {missing[:5].to_pylist()}), "
            f"{found['rows'] - found['records']} have several; remove the part files concerned and run again"
        )
    return f"audit: each of the {records:,} records has exactly one row in {folder}"
