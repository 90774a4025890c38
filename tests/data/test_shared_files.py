"""Files as users have them, where a folder of such files is at hand: ``OSTLIGHT_SHARED_DATA`` names it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset

ROOT = Path(os.environ.get("OSTLIGHT_SHARED_DATA", ""))
FILES = {
    "formats/mllm_demo.json": 6,
    "formats/v1_multimodal_demo.jsonl": 24,
    "formats/v1_sft_demo.jsonl": 500,
    "formats/alpaca_en_demo.json": 999,
    "easy_vqa/train.json": 38_575,
    "easy_vqa/test.json": 9_673,
    "human_noise/pool.parquet": 8_400,
    "human_noise/anchors.parquet": 100,
    "human_noise/dev.parquet": 500,
    "human_noise/test.parquet": 1_000,
}

pytestmark = pytest.mark.skipif(
    "OSTLIGHT_SHARED_DATA" not in os.environ, reason="OSTLIGHT_SHARED_DATA names no folder of users' files"
)


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A folder that holds ``data/mllm_demo_data``, where the demo's records look for it."""
    (tmp_path / "root" / "data").mkdir(parents=True)
    for image in (ROOT / "formats" / "mllm_demo_data").iterdir():
        target = tmp_path / "root" / "data" / "mllm_demo_data" / image.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(image.read_bytes())
    return tmp_path / "root"


@pytest.mark.parametrize("name", FILES)
def test_reads_and_round_trips(name: str, tmp_path: Path, image_root: Path) -> None:
    path = ROOT / name
    pool = Pool.open(path, image_root=image_root if "v1_multimodal" in name else None)
    found = [record for _, record in pool.read(range(len(pool)))]
    assert Counter(type(record) for record in found) == {Sample: FILES[name]}
    assert all(image.open().mode == "RGB" for record in found[:50] for image in record.images)  # type: ignore[union-attr]

    kept = [i for i in range(len(pool) - 1, -1, -1) if i % 7 == 0][:500]
    subset = tmp_path / "subset"
    written = write_subset(pool, kept, subset)
    again = Pool.open(written[0])
    for n, i in enumerate(kept):
        assert again[n].turns == pool[i].turns
        assert [image.read_bytes() for image in again[n].images] == [image.read_bytes() for image in pool[i].images]
    _assert_unchanged(path, written[0], kept)


def _assert_unchanged(source: Path, subset: Path, kept: list[int]) -> None:
    if source.suffix == ".parquet":
        before, after = pq.read_table(source), pq.read_table(subset)
        assert after.equals(before.take(kept))
        assert after.schema.equals(before.schema, check_metadata=True)
    elif source.suffix == ".jsonl":
        lines = [line for line in source.read_bytes().split(b"\n") if line.strip()]
        assert subset.read_bytes() == b"".join(lines[i] + b"\n" for i in kept)
    else:
        values, whole = json.loads(source.read_bytes()), source.read_bytes()
        assert json.loads(subset.read_bytes()) == [values[i] for i in kept]
        elements = Pool.open(subset).sources[0]
        assert all(elements.raw(n) in whole for n in range(len(elements)))  # type: ignore[attr-defined]


def test_images_that_are_elsewhere_are_missing() -> None:
    pool = Pool.open(ROOT / "formats" / "v1_multimodal_demo.jsonl")
    assert {getattr(record, "reason", "read") for _, record in pool.read(range(24))} == {"missing_image"}
