"""Samples as Parquet files that ``datasets.load_dataset`` opens, images included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn
from ostlight.data.video import FrameRef
from ostlight.errors import BadRecord, DataError
from ostlight.sharing.records import MAX_TAG_COLUMNS, Kept, Overview

FILE_BYTES = 400_000_000
GROUP_BYTES, GROUP_RECORDS = 32_000_000, 1_000
"""Of a row group: the Hub's viewer reads whole ones."""

OWN_COLUMNS = ("id", "messages", "images", "tools", "score", "rank")
STRING = {"dtype": "string", "_type": "Value"}
JSON = {"_type": "Json"}


def write_dataset(kept: Iterable[Kept], overview: Overview, folder: Path) -> str:
    """Writes ``data/train-00000-of-00001-HASH.parquet`` and so on below ``folder``; returns the pattern of their names.

    The hash is that of their content: ``datasets`` would take another data set under the same name from its cache.

    Columns: ``id``; ``messages``, each with ``role`` and ``content`` (text, or parts of type ``text`` and ``image``
    where the records have images); ``images`` as their files hold them; ``tools``; ``score`` and ``rank``; one column
    for each tag. Of a turn that no loss is taken on, ``weight`` is 0.

    Raises:
        DataError: an image cannot be read any more.
    """
    tags = tag_columns(overview)
    # Arrow makes no arrays of its JSON type from Python's values, but turns texts into it.
    writer = _Files(
        folder / "data", schema_of(overview), schema_of(overview, pa.json_() if overview.has_tools else None)
    )
    try:
        for record in kept:
            writer.add(_row(record, overview, tags))
    except BaseException:
        writer.abort()
        raise
    return f"data/{writer.close()}"


def tag_columns(overview: Overview) -> dict[str, str]:
    """The column of each tag: its name, or ``tag_NAME`` where that is taken; the most frequent tags only."""
    common = sorted(overview.tags, key=lambda name: (-overview.tags[name], name))[:MAX_TAG_COLUMNS]
    columns = {name: name for name in sorted(common) if name not in OWN_COLUMNS}
    for name in sorted({*OWN_COLUMNS} & {*common}):
        column = f"tag_{name}"
        while column in columns.values():
            column = f"tag_{column}"
        columns[name] = column
    return {name: columns[name] for name in sorted(common)}


def schema_of(overview: Overview, json_type: pa.DataType | None = None) -> pa.Schema:
    """The schema, with the features that the library ``datasets`` looks for in it.

    Args:
        json_type: of JSON; text by default.
    """
    message: dict[str, Any] = {"role": STRING}
    message["content"] = [{"type": STRING, "text": STRING}] if overview.images else STRING
    if overview.has_tools:
        message["tool_calls"] = JSON
    if overview.has_names:
        message |= {"name": STRING, "tool_call_id": STRING}
    if overview.has_muted:
        message["weight"] = {"dtype": "int8", "_type": "Value"}
    features: dict[str, Any] = {"id": STRING, "messages": [message]}
    if overview.images:
        features["images"] = [{"_type": "Image"}]
    if overview.has_tools:
        features["tools"] = JSON
    features |= {"score": {"dtype": "float64", "_type": "Value"}, "rank": {"dtype": "int64", "_type": "Value"}}
    features |= {column: STRING for column in tag_columns(overview).values()}
    described = json.dumps({"info": {"features": features}})
    fields = [pa.field(name, _arrow_type(feature, json_type or pa.string())) for name, feature in features.items()]
    return pa.schema(fields, metadata={"huggingface": described})


def _arrow_type(feature: Any, json_type: pa.DataType) -> pa.DataType:
    if isinstance(feature, list):
        return pa.list_(_arrow_type(feature[0], json_type))
    kind = feature.get("_type")
    if kind == "Value":
        return pa.type_for_alias(feature["dtype"])
    if kind == "Image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if kind == "Json":
        return json_type
    return pa.struct([(name, _arrow_type(value, json_type)) for name, value in feature.items()])


def _row(record: Kept, overview: Overview, tags: dict[str, str]) -> dict[str, Any]:
    sample = record.sample
    row: dict[str, Any] = {"id": sample.id, "messages": [_message(turn, overview) for turn in sample.turns]}
    if overview.images:
        row["images"] = [_image(image, sample) for image in sample.images]
    if overview.has_tools:
        row["tools"] = json.dumps(sample.tools, ensure_ascii=False) if sample.tools else None
    row |= {"score": record.score, "rank": record.rank}
    return row | {column: sample.tags.get(name) for name, column in tags.items()}


def _message(turn: Turn, overview: Overview) -> dict[str, Any]:
    content = parts_of(turn.text) if overview.images else turn.text
    message: dict[str, Any] = {"role": turn.role, "content": content}
    if turn.tool_calls:
        message["tool_calls"] = json.dumps(turn.tool_calls, ensure_ascii=False)
    message |= {"name": turn.name, "tool_call_id": turn.tool_call_id} if overview.has_names else {}
    if overview.has_muted and turn.role == "assistant":
        message["weight"] = int(turn.trained)
    return message


def parts_of(text: str) -> list[dict[str, str | None]]:
    """A text as parts: ``{"type": "image"}`` in the place of each placeholder, texts between them."""
    parts: list[dict[str, str | None]] = []
    for n, between in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if n:
            parts.append({"type": "image", "text": None})
        if between:
            parts.append({"type": "text", "text": between})
    return parts or [{"type": "text", "text": ""}]


def _image(image: ImageRef, sample: Sample) -> dict[str, Any]:
    return {"bytes": image_bytes(image, sample), "path": image_name(image)}


def image_bytes(image: ImageRef, sample: Sample) -> bytes:
    """The encoded image.

    Raises:
        DataError: it is gone.
    """
    try:
        return image.read_bytes()
    except BadRecord as bad:
        raise DataError(f"record {sample.id!r} cannot be exported: {bad}", image.path) from bad


def image_name(image: ImageRef) -> str | None:
    """The name of the image's file, without its folder; ``None`` where it is no file."""
    if isinstance(image, FrameRef):
        return f"{image.path.stem if image.path is not None else 'video'}-frame-{image.number:04d}.png"
    return image.path.name if image.path is not None else None


class _Files:
    """Writes rows to one Parquet file after another, each of at most about ``FILE_BYTES``.

    Args:
        folder: is made.
        plain: schema of the rows, JSON as text.
        schema: of the files.
    """

    def __init__(self, folder: Path, plain: pa.Schema, schema: pa.Schema) -> None:
        self.folder, self.plain, self.schema = folder, plain, schema
        folder.mkdir(parents=True)
        self.rows: list[dict[str, Any]] = []
        self.row_bytes = self.file_bytes = 0
        self.parts: list[Path] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.row_bytes += sum(len(image["bytes"]) for image in row.get("images") or ())
        self.row_bytes += sum(len(str(message["content"])) for message in row["messages"])
        if self.row_bytes >= GROUP_BYTES or len(self.rows) >= GROUP_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None or self.file_bytes + self.row_bytes > FILE_BYTES:
            self._end_file()
            self.parts.append(self.folder / f"{len(self.parts):05d}.parquet")
            self.writer = pq.ParquetWriter(self.parts[-1], self.schema, compression="zstd")
        self.writer.write_table(pa.Table.from_pylist(self.rows, self.plain).cast(self.schema))
        self.file_bytes += self.row_bytes
        self.rows, self.row_bytes = [], 0

    def _end_file(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer, self.file_bytes = None, 0

    def close(self) -> str:
        """Ends the last file and names all by their number and content; returns the pattern of the names."""
        self._flush()
        self._end_file()
        digest = hashlib.sha256()
        for part in self.parts:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        content, count = digest.hexdigest()[:16], len(self.parts)
        for k, part in enumerate(self.parts):
            part.rename(self.folder / f"train-{k:05d}-of-{count:05d}-{content}.parquet")
        return f"train-*-{content}.parquet"

    def abort(self) -> None:
        """Closes the file that is open."""
        self.rows.clear()
        self._end_file()
