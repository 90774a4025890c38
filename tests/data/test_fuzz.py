"""Mutated records of every format: none causes a traceback, and each is kept, dropped or rejected."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ostlight
from ostlight.config.schema import Columns
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample, open_images
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError

pytestmark = pytest.mark.slow

RECORDS = 5_000
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM")
MODES = ("RGB", "RGBA", "L", "P", "CMYK", "I;16", "1")


def image_bytes(rng: random.Random) -> bytes:
    """A small image of a random mode and format, whole or with some bytes changed."""
    out = io.BytesIO()
    try:
        Image.new("RGB", (rng.randint(1, 20), rng.randint(1, 20)), (rng.randrange(256), 9, 9)).convert(
            rng.choice(MODES)
        ).save(out, rng.choice(IMAGE_FORMATS))
    except (OSError, ValueError):  # not every format has every mode
        Image.new("RGB", (3, 3)).save(out, "PNG")
    data = out.getvalue()
    return changed(data, rng) if rng.random() < 0.6 else data


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changed, cut, doubled or inserted."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not edited:
            break
        at = rng.randrange(len(edited))
        how = rng.randrange(5)
        if how == 0:
            edited[at] = rng.randrange(256)
        elif how == 1:
            edited[at : at + rng.choice((1, 4, 8))] = rng.choice((b"\xff" * 4, b"\0" * 8, b"\x80", b"\x7f\xff\xff\xff"))
        elif how == 2:
            del edited[at : at + rng.randrange(1, 9)]
        elif how == 3:
            edited[at:at] = edited[at : at + rng.randrange(1, 9)]
        else:
            edited[at] ^= 1 << rng.randrange(8)
    return bytes(edited)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "\0", "\ud800", "\u202e", "é" * 50),
    *("user", "gpt", "tool", "<image>", "<image>" * 9, "<img>x.png</img>", "<video>", "<bbox>", "../x", "/etc/passwd"),
    *(
        "file:///etc/passwd",
        "data:image/png;base64,AAA",
        "data:,",
        "https://x.y/z.png",
        "pics/0.png",
        "pics",
        "a" * 300,
    ),
    *([], {}, [[]], [None], {"bytes": None, "path": None}, {"bytes": "x"}, {"url": None}, {"type": "image"}, [1, "2"]),
    *('[{"role": "user", "content": "x"}]', "[", '{"name": "f"}', [{"name": "f", "arguments": "{"}], {"a": {"b": {}}}),
]
NAMES = (
    *("id", "image", "images", "conversations", "messages", "conversation", "texts", "instruction", "input", "output"),
    *("question", "answer", "history", "system", "tools", "tool_calls", "weight", "loss", "mask", "from", "value"),
    *("role", "content", "objects", "videos", "file_name", "tags", "meta", "user", "assistant", "type", "text"),
)


def good(n: int, rng: random.Random) -> dict[str, Any]:
    """A record without fault, of a random layout."""
    image: Any = rng.choice([None, "pics/0.png", ["pics/1.png"]])
    mark = "<image>\n" if image else ""
    turns = [("user", f"{mark}q{n}?"), ("assistant", f"a{n}"), ("user", "more?"), ("assistant", "no")]
    record: dict[str, Any] = rng.choice(
        [
            {"conversations": [{"from": who, "value": what} for who, what in turns]},
            {"messages": [{"role": who, "content": what} for who, what in turns]},
            {"messages": [{"role": who, "content": [{"type": "text", "text": what}]} for who, what in turns[:2]]},
            {"texts": [{"user": turns[0][1], "assistant": turns[1][1]}]},
            {"instruction": turns[0][1], "input": "", "output": turns[1][1]},
            {"question": turns[0][1], "answer": turns[1][1]},
        ]
    )
    return {"id": rng.choice([n, str(n), float(n), None, "same"]), "image": image, **record}


def mutated(record: Any, rng: random.Random) -> Any:
    """The record with something in it replaced, removed or added, at any depth."""
    if isinstance(record, dict) and record and rng.random() < 0.85:
        edited = dict(record)
        name = rng.choice(list(edited))
        how = rng.randrange(6)
        if how == 0:
            del edited[name]
        elif how == 1:
            edited[rng.choice(NAMES)] = rng.choice(ODD)
        elif how == 2:
            edited[rng.choice(NAMES)] = edited.pop(name)
        else:
            edited[name] = mutated(edited[name], rng)
        return edited
    if isinstance(record, list) and record and rng.random() < 0.85:
        edited_list = list(record)
        at = rng.randrange(len(edited_list))
        how = rng.randrange(5)
        if how == 0:
            del edited_list[at]
        elif how == 1:
            edited_list.insert(at, rng.choice(ODD))
        elif how == 2:
            edited_list.insert(at, edited_list[at])
        else:
            edited_list[at] = mutated(edited_list[at], rng)
        return edited_list
    return rng.choice(ODD)


def records(count: int, rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for n in range(count):
        record = good(n, rng)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            record = mutated(record, rng)
        if not isinstance(record, dict):
            record = {"question": record, "answer": "x"}
        if rng.random() < 0.2:
            record["image"] = "data:image/png;base64," + base64.b64encode(image_bytes(rng)).decode()
        found.append(record)
    return found


def _json(record: Any) -> bytes:
    return json.dumps(record).encode()


def jsonl(path: Path, count: int, rng: random.Random) -> Path:
    lines = [_json(record) for record in records(count, rng)]
    lines = [changed(line, rng).replace(b"\n", b" ") if rng.random() < 0.3 else line for line in lines]
    (path / "pool.jsonl").write_bytes(_json(good(0, rng)) + b"\n" + b"\n".join(lines) + b"\n")
    return path / "pool.jsonl"


def json_array(path: Path, count: int, rng: random.Random) -> Path:
    (path / "pool.json").write_bytes(b"[" + b",\n".join(map(_json, records(count, rng))) + b"]")
    return path / "pool.json"


def table_rows(count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Rows of one schema, with images as bytes."""
    rows = []
    for n in range(count):
        turns = [{"from": "human", "value": f"<image>{n}?"}, {"from": "gpt", "value": f"{n}!"}]
        for _ in range(rng.randrange(3)):
            turn = rng.choice(turns)
            turn[rng.choice(["from", "value"])] = rng.choice([x for x in ODD if isinstance(x, str) and x.isprintable()])
        if rng.random() < 0.1:
            turns = []
        image = {
            "bytes": image_bytes(rng) if rng.random() < 0.9 else None,
            "path": rng.choice([None, "pics/0.png", "x"]),
        }
        rows.append({"id": rng.choice([str(n), "same", None]), "image": image, "conversations": turns or None, "n": n})
    return rows


def parquet_file(path: Path, count: int, rng: random.Random) -> Path:
    pq.write_table(pa.Table.from_pylist(table_rows(count, rng)), path / "pool.parquet", row_group_size=64)
    return path / "pool.parquet"


def hf_folder(path: Path, count: int, rng: random.Random) -> Path:
    datasets.Dataset.from_list(table_rows(count, rng)).save_to_disk(path / "saved")
    return path / "saved"


def tar_file(path: Path, count: int, rng: random.Random) -> Path:
    with tarfile.open(path / "pool.tar", "w") as tar:
        for n, record in enumerate(records(count, rng)):
            members = {f"{n:05}.json": _json(record), f"{n:05}.png": image_bytes(rng)}
            for name, content in members.items():
                if rng.random() < 0.1:
                    continue
                header = tarfile.TarInfo(rng.choice([name, name, name, name.replace(".", "\udcff."), "x" * 120 + name]))
                header.size = len(content)
                if rng.random() < 0.1:
                    header.type, header.size = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), 0
                    header.linkname = rng.choice([name, "00000.png", "../x", "/etc/passwd", f"{n:05}.png"])
                tar.addfile(header, io.BytesIO(content))
    return path / "pool.tar"


def csv_file(path: Path, count: int, rng: random.Random) -> Path:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", "image", "question", "answer", "extra"])
    for n in range(count):
        row = [str(n), rng.choice(["", "pics/0.png", "gone.png"]), f'"q{n}",\n?', f"a{n}", rng.choice(["", "x", '"'])]
        writer.writerow(row[: rng.choice((5, 5, 5, 5, 4, 2))])
    header, newline, rest = out.getvalue().encode().partition(b"\r\n")
    lines = [changed(line, rng) if rng.random() < 0.2 else line for line in rest.split(b"\r\n")]
    (path / "pool.csv").write_bytes(header + newline + b"\r\n".join(lines))
    return path / "pool.csv"


WRITERS = {
    "jsonl": jsonl,
    "json": json_array,
    "parquet": parquet_file,
    "hf": hf_folder,
    "webdataset": tar_file,
    "csv": csv_file,
}


def read_all(pool: Pool) -> Counter[str]:
    """Reads every record and its images; returns how many came to what."""
    found: Counter[str] = Counter()
    usable = []
    for position, record in pool.read(range(len(pool))):
        if isinstance(record, BadRecord):
            found[record.reason] += 1
            continue
        try:
            open_images(record.images)
        except BadRecord as bad:
            found[bad.reason] += 1
        else:
            found["read"] += 1
            usable.append(position)
    assert found.total() == len(pool)
    assert len({pool[i].id for i in usable}) == len(usable)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_mutated_records_are_kept_dropped_or_rejected(
    name: str, tmp_path: Path, png: Callable, settings: Callable
) -> None:
    rng = random.Random(name)
    (tmp_path / "pics").mkdir()
    for n in range(2):
        (tmp_path / "pics" / f"{n}.png").write_bytes(png(n))
    path = WRITERS[name](tmp_path, RECORDS // len(WRITERS) + 1, rng)
    pool = Pool.open(path, image_root=tmp_path)
    found = read_all(pool)
    assert found["read"] > 50
    assert len(found) >= 3

    config = settings(
        pool={"path": str(path), "image_root": str(tmp_path)}, anchors={"path": None}, selector={"name": "length"}
    )
    selection = ostlight.select(config, "budget.fraction=0.5")
    rejected = sum(selection.rejected.values())
    assert len(selection.kept) + selection.dropped + rejected == len(pool)
    again = Pool.open(selection.folder.subset / path.name, image_root=selection.folder.subset)
    read = [record for _, record in again.read(range(len(again))) if isinstance(record, Sample)]
    assert len(read) == len(selection.kept)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_changed_bytes_is_read_or_refused(name: str, tmp_path: Path, png: Callable) -> None:
    """Changes beyond records: headers, footers, offsets, lengths."""
    rng = random.Random(f"bytes {name}")
    path = WRITERS[name](tmp_path, 12, rng)
    (target,) = path.glob("*.arrow") if path.is_dir() else [path]
    whole = target.read_bytes()
    began, refused, read = time.monotonic(), 0, 0
    for _ in range(150):
        target.write_bytes(changed(whole, rng))
        try:
            pool = Pool.open(path, columns=Columns(question="question", answer="answer") if name == "csv" else None)
            read += read_all(pool)["read"]
            usable = [k for k, record in pool.read(range(len(pool))) if isinstance(record, Sample)]
            if usable:
                write_subset(pool, usable, tmp_path / "subset")
        except DataError:  # one line that names the file, instead of a traceback
            refused += 1
        if time.monotonic() - began > 20:
            break
    assert refused or read
