"""Records become batches in windows of bounded memory, and none is lost or read twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ostlight.config.schema import Compute
from ostlight.data.pool import Pool
from ostlight.pipeline.scoring import stream
from ostlight.pipeline.scoring.stream import Encoding, ShardBatch, ShardStream

SHARD = 10
BROKEN = {3, 17}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """24 records with an image each, two of which cannot be decoded."""
    lines = []
    for k in range(24):
        if k in BROKEN:
            (tmp_path / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        else:
            Image.new("RGB", (16, 16), (k, 0, 0)).save(tmp_path / f"{k}.png")
        answer = "an answer " * (1 + k % 5)
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": str(k), "image": f"{k}.png", "conversations": turns}))
    (tmp_path / "pool.jsonl").write_text("\n".join(lines))
    return Pool.open(tmp_path / "pool.jsonl")


@pytest.fixture
def made(pool: Pool, proxy: Any):
    model = proxy("float32")

    def batches(**compute: Any) -> list[ShardBatch]:
        settings = Compute(shard_size=SHARD, **compute)
        return list(ShardStream(pool, [0, 1, 2], settings, Encoding(model.encoder, model.collator)))

    return batches


def order(found: list[ShardBatch]) -> list[list[int]]:
    return [[sample.position for sample in one.batch.samples] for one in found]


def test_a_shard_that_fits_is_batched_as_a_whole_longest_first(made):
    found = made(tokens_per_batch=60)
    for shard in range(3):
        lengths = [max(one.batch.tokens) for one in found if one.shard == shard]
        assert lengths == sorted(lengths, reverse=True)
        assert len(lengths) > 1


@pytest.mark.parametrize("records", [1, 3, 4])
def test_no_more_is_held_than_a_window(made, monkeypatch, records):
    whole = made(tokens_per_batch=60)
    size = max(one.nbytes for batch in whole for one in batch.batch.encoded)
    held: list[int] = []
    add = ShardStream._add

    def watched(self: ShardStream, position: int, read: Any, window: Any) -> None:
        add(self, position, read, window)
        assert window.nbytes == sum(encoded.nbytes for _, encoded in window.usable)
        held.append(window.nbytes)

    monkeypatch.setattr(ShardStream, "_add", watched)
    monkeypatch.setattr(stream, "WINDOW_BYTES", records * size)
    found = made(tokens_per_batch=60)
    assert max(held) <= (records + 1) * size
    assert order(found) != order(whole)
    positions = sorted(p for positions in order(found) for p in positions)
    assert positions == [p for p in range(24) if p not in BROKEN]
    rejected = [rejection for one in found for rejection in one.rejections]
    assert sorted((r.position, r.error.reason) for r in rejected) == [(p, "corrupt_image") for p in sorted(BROKEN)]
    assert sorted(image.position for one in found for image in one.images) == list(range(24))
    for shard in range(3):
        assert [one.is_last for one in found if one.shard == shard].count(True) == 1
        assert [one.is_last for one in found if one.shard == shard][-1]


def test_what_seldom_fills_a_batch_waits_for_the_next_window(made, monkeypatch):
    whole = made(tokens_per_batch=100_000)
    size = max(one.nbytes for batch in whole for one in batch.batch.encoded)
    monkeypatch.setattr(stream, "WINDOW_BYTES", 5 * size)
    small = made(tokens_per_batch=2 * max(max(one.batch.tokens) for one in whole))
    counts = [len(one.batch) for one in small if one.shard == 0]
    assert sum(counts) == SHARD - 1
    assert counts.count(1) <= 1, "of all batches of a shard only the last is not full"


def test_without_a_model_batches_have_a_fixed_number_of_samples(pool, monkeypatch):
    monkeypatch.setattr(stream, "SAMPLES_PER_BATCH", 4)
    found = list(ShardStream(pool, [0, 1, 2], Compute(shard_size=SHARD), None))
    assert order(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15, 16, 17], [18, 19],
                            [20, 21, 22, 23], []]  # fmt: skip
    assert [one.is_last for one in found] == [False, False, True, False, False, True, False, True]
