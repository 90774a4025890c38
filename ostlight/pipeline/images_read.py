"""The image files that scores were made from: what they were, whether they changed, and what can be read by now.

Beside the scores of a shard lies ``images/part-*.parquet`` with one row for each image file of its records. Before the
scores are used again, every file is compared by size and time of modification, and by content where these differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ostlight.data.checked_parquet import is_whole, read_parquet, write_parquet
from ostlight.data.file_key import content_key
from ostlight.data.pool import Pool
from ostlight.data.remote import RemotePath
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, RunChangedError
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress import track
from ostlight.selection.score_files import ScoreFiles

IMAGE_REASONS = frozenset(
    {"missing_image", "image_outside_root", "remote_image", "not_an_image", "image_too_large", "corrupt_image"}
)
"""Reasons of records whose images may be there by now, or be images by now."""


class ImageRead(NamedTuple):
    """An image file as it was when its record was read.

    Attributes:
        position: of the record in the pool.
        name: path below the image root; absolute where the record names it so.
        path: where it was.
        size: bytes; -1 where there was no such file.
        modified: time of modification, nanoseconds.
        content: SHA-256; ``None`` where nothing read the file.
    """

    position: int
    name: str
    path: str
    size: int
    modified: int
    content: str | None


SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64()),
        pa.field("name", pa.string()),
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("modified", pa.int64()),
        pa.field("content", pa.string()),
    ]
)


def images_of(pool: Pool, sample: Sample, was_read: bool) -> list[ImageRead]:
    """Returns a sample's image files as they are now.

    Args:
        was_read: whether they were opened just now; if so, their content is noted too.
    """
    root = pool.readers[pool.source_and_index(sample.position)[0]].root
    seen = []
    for image in sample.images:
        if image.path is None:
            continue
        size, modified = _state(image.path)
        content = content_key(image.path) if was_read and size >= 0 else None
        relative = root.relative(image.path)
        name = str(image.path) if relative.parts[:1] == (os.pardir,) else relative.as_posix()
        seen.append(ImageRead(sample.position, name, str(image.path), size, modified, content))
    return seen


def write_images(images: Iterable[ImageRead], file: Path) -> None:
    """Writes the images of a shard; replaces those of the same records where the file exists."""
    images = list(images)
    rows = {name: [getattr(image, name) for image in images] for name in SCHEMA.names}
    table = pa.table(rows, schema=SCHEMA)
    if file.exists():
        cure = "remove it and the file of that name in `scores`, and its records are scored again"
        before = read_parquet(file, cure, schema=SCHEMA)
        table = pa.concat_tables([without_records(before, table["position"]), table]).sort_by("position")
    elif not images:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(table, file)


def forget_images(positions: pa.ChunkedArray, file: Path) -> None:
    """Removes the images of the records at these positions from the file of a shard."""
    if file.exists():
        before = read_parquet(file, "remove it, and its records are scored again", schema=SCHEMA)
        write_parquet(without_records(before, positions), file)


def without_records(table: pa.Table, positions: pa.ChunkedArray) -> pa.Table:
    """Returns the rows of a table that are of no record at these positions."""
    return table.filter(pc.invert(pc.is_in(table["position"], pc.unique(positions))))


def check_images(folder: RunFolder, pool: Pool, run: RunFolder | None = None) -> list[int]:
    """Returns the positions of rejected records whose images can be read by now, or are others; they can be retried.

    Args:
        folder: with the scores.
        pool: that they are of.
        run: whose name is to be changed, or whose folder removed, if images are others; by default ``folder``.

    Raises:
        RunChangedError: an image that a score was made from is gone or another one.
    """
    rejected = rejected_reasons(folder.scores)
    unread = {position for position, reason in rejected.items() if reason in IMAGE_REASONS}
    retried: set[int] = set()
    _ask_servers(folder, pool)
    checked: dict[tuple[int, str], str | None] = {}
    total, changed, first = 0, 0, ""
    for file in track(sorted(folder.images.glob("part-*.parquet")), "checking images", unit="shards"):
        cure = f"remove it and {folder.scores / file.name}, and its records are scored again"
        for row in read_parquet(file, cure, schema=SCHEMA).to_pylist():
            image = ImageRead(**row)
            total += 1
            unread.discard(image.position)  # it could be opened, so what matters is whether it is another one
            key = (pool.source_and_index(image.position)[0], image.name)
            if key not in checked:
                checked[key] = _difference(image, _path_now(image, pool))
            difference = checked[key]
            if difference is not None and image.position in rejected:
                retried.add(image.position)
            elif difference is not None:
                changed += 1
                first = first or f"{image.name} of {pool.record_name(image.position)}: {difference}"
    if changed:
        start_over = f"Give this run another name (name=...), or remove {(run or folder).path} to start over"
        raise RunChangedError(
            f"{folder.path} holds scores of images that are others now; changed: images ({changed:,} of {total:,}; "
            f"the first is {first}). {start_over}",
            ["images"],
        )
    return sorted(retried | {position for position in unread if _has_files(_read(pool, position))})


def _has_files(read: Sample | BadRecord) -> bool:
    """Whether the record can be read by now, and names files: images in the record itself are what they were."""
    return isinstance(read, Sample) and any(image.path is not None for image in read.images)


def _ask_servers(folder: RunFolder, pool: Pool) -> None:
    """Asks for all remote image roots at once, where the servers list what they have: one question for each file
    would take hours."""
    roots = {reader.root.folder for reader in pool.readers}
    for root in roots:
        if isinstance(root, RemotePath) and any(folder.images.glob("part-*.parquet")):
            with suppress(OSError):
                for _ in root.rglob("*"):
                    pass


def _path_now(image: ImageRead, pool: Pool) -> Path:
    """Where the record's image is under the image root of today."""
    path = pool.readers[pool.source_and_index(image.position)[0]].root.folder / image.name
    if str(path) != image.path and isinstance(sample := _read(pool, image.position), Sample):
        # A record may name an image below the old root by its absolute path, which no other root changes.
        path = next((one.path for one in sample.images if one.path and str(one.path) == image.path), path)
    return path


def rejected_reasons(scores: Path) -> dict[int, str]:
    """Returns the reason of every rejected record by its position."""
    if not any(map(is_whole, scores.glob("part-*.parquet"))):
        return {}
    rejected = ScoreFiles(scores, skip_damaged=True).rejected()
    return dict(zip(rejected["position"].to_pylist(), rejected["reason"].to_pylist(), strict=True))


def _read(pool: Pool, position: int) -> Sample | BadRecord:
    return next(pool.read([position]))[1]


def _difference(image: ImageRead, path: Path) -> str | None:
    """How the file at ``path`` differs from the image that was read; ``None`` where it does not."""
    size, modified = _state(path)
    if size != image.size:
        return f"{path} is not there" if size < 0 else f"{path} has {size:,} bytes, it had {image.size:,}"
    is_moved = str(path) != image.path
    if size < 0 or (modified == image.modified and not is_moved):
        return None
    if image.content is not None:
        return None if content_key(path) == image.content else f"{path} has another content"
    if is_moved and _state(Path(image.path))[0] == size:
        return None if content_key(path) == content_key(Path(image.path)) else f"{path} is not {image.path}"
    return None if modified == image.modified else f"{path} was written since"


def _state(path: Path) -> tuple[int, int]:
    """Size and time of modification; -1 and 0 where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
