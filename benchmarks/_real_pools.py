"""Records of a pool of real images, and the Parquet files ostlight reads them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.digitmath.build import DEFECT_LABELS_SCHEMA


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one image.

    Attributes:
        image: the encoded file's bytes.
        tags: further columns; the same names for all records of a file.
    """

    id: str
    image: bytes
    question: str
    answer: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """A pool, its trusted parts and what is wrong with it.

    Attributes:
        parts: records by part: ``pool``, ``anchors``, ``dev``, ``test``, and ``base`` to train base models on.
        defects: one for each record of the pool; ``clean`` where there is none.
    """

    parts: dict[str, list[Record]]
    defects: list[str]

    def write(self, folder: Path) -> None:
        """``PART.parquet`` for every part, and ``defect_labels.parquet`` (``id``, ``defect``), which no selector may
        read."""
        folder.mkdir(parents=True, exist_ok=True)
        for part, records in self.parts.items():
            pq.write_table(table_of(records), folder / f"{part}.parquet")
        ids = [record.id for record in self.parts["pool"]]
        pq.write_table(
            pa.table({"id": ids, "defect": self.defects}, DEFECT_LABELS_SCHEMA), folder / "defect_labels.parquet"
        )


def table_of(records: Sequence[Record]) -> pa.Table:
    """LLaVA's fields, the image's bytes in the record, a column for each tag."""
    schema = pa.schema(
        {
            "id": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "conversations": pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})),
        }
        | dict.fromkeys(records[0].tags, pa.string())
    )
    rows = [
        {
            "id": record.id,
            "image": {"bytes": record.image, "path": None},
            "conversations": [
                {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{record.question}"},
                {"from": "gpt", "value": record.answer},
            ],
            **record.tags,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema)


def check_files(folder: Path, names: Sequence[str], what: str) -> None:
    """Raises:
    SystemExit: one line that names what is missing from the folder.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise SystemExit(
            f"{folder} is not the folder of {what}: {', '.join(missing)} missing; name it with --data FOLDER"
        )
