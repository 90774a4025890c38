"""Whatever a library raises on one record rejects that record, in every stage; on all of the first, it ends the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import ostlight
from ostlight.config.load import load_config
from ostlight.errors import FIRST_RECORDS, BadRecord, DataError, stop_if_useless
from ostlight.pipeline.evaluate import evaluate
from ostlight.pipeline.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import folders

WRONG = {
    "line": ("<image>\nWhat?", "a line", "processor_refused"),
    "token": ("what is <|image_pad|>?", "a mark", "media_token_in_text"),
    "answer": ("draw it", "<image>", "image_in_answer"),
}
"""Records that a Qwen-VL cannot take: question, answer, reason."""


def record(name: str, question: str, answer: str, image: str | None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages, **({"images": [image]} if image else {})}


@pytest.fixture
def config(settings: Callable[..., dict], tmp_path: Path) -> Callable[..., Any]:
    """Settings of a run with a tiny Qwen-VL, whose pool, development and test set hold records it cannot take."""
    Image.new("RGB", (8, 8), (200, 30, 90)).save(tmp_path / "square.png")
    Image.new("RGB", (900, 2)).save(tmp_path / "line.png")
    records = [record(f"good{k}", "<image>\nsay one", "one", "square.png") for k in range(8)]
    for name, (question, answer, _) in WRONG.items():
        image = f"{'line' if name == 'line' else 'square'}.png" if "<image>" in question + answer else None
        records.insert(len(records) // 2, record(name, question, answer, image))
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    good = [r for r in records if r["id"] not in WRONG]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(r) + "\n" for r in good))
    model = {"path": str(folders.save("qwen2_5_vl", tmp_path / "model"))}

    def make(**sections: Any) -> Any:
        mixed = {"path": str(tmp_path / "mixed.jsonl")}
        base = {
            "pool": mixed, "dev": mixed, "test": mixed, "anchors": {"path": str(tmp_path / "good.jsonl")},
            "proxy": {**model, "warmup": {"fraction": 1.0, "training": {"steps": 2, "batch_size": 4}}},
            "target": {**model, "training": {"steps": 3, "batch_size": 4}},
            "selector": {"name": "loss"}, "budget": {"fraction": 1.0}, "evaluation": {"max_new_tokens": 2},
        }  # fmt: skip
        return load_config(settings(**(base | sections)))

    return make


def quarantined(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert all(row["detail"] for row in rows)
    return {row["id"]: row["reason"] for row in rows}


REASONS = {name: reason for name, (*_, reason) in WRONG.items()}


def test_scoring_and_the_warm_up_leave_them_out(config: Callable[..., Any], logged) -> None:
    selection = ostlight.select(config())
    assert selection.rejected == {reason: 1 for reason in sorted(REASONS.values())}
    assert len(selection.kept) == 8
    assert quarantined(selection.folder.path) == REASONS
    messages = logged()
    assert "warm-up: 3 of 11 samples could not be used" in messages
    assert "development set: 3 of 11 samples are left out" in messages


def test_training_and_evaluation_leave_them_out(config: Callable[..., Any], logged) -> None:
    given = config(selector={"name": "random"})
    selection = ostlight.select(given)
    assert selection.rejected == {}
    train(given)
    assert quarantined(selection.folder.path) == REASONS
    assert evaluate(given).counts["all"] == 8
    assert "3 test records could not be used" in logged()


def test_a_model_that_takes_no_record_stops_the_run_with_the_first_reason(
    config: Callable[..., Any], tmp_path: Path
) -> None:
    bad = [record(f"line{k}", "<image>\nWhat?", "a line", "line.png") for k in range(FIRST_RECORDS + 40)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bad))
    pool, good = {"path": str(tmp_path / "bad.jsonl")}, {"path": str(tmp_path / "good.jsonl")}
    cold = {"path": str(tmp_path / "model"), "warmup": {"fraction": 0}}
    shards = {"shard_size": FIRST_RECORDS, "progress": False, "logger": "none", "accelerator": "cpu"}
    for sections in ({}, {"proxy": cold, "name": "cold"}):
        with pytest.raises(DataError, match="aspect ratio") as caught:
            ostlight.select(config(pool=pool, dev=good, compute=shards, **sections))
        assert f"first {FIRST_RECORDS} records" in str(caught.value)
    given = config(pool=pool, dev=good, compute=shards, selector={"name": "random"}, name="train")
    ostlight.select(given)
    with pytest.raises(DataError, match="aspect ratio"):
        train(given)


def test_reasons_of_single_records_stop_no_run() -> None:
    bad = [BadRecord("processor_refused", "too wide")] * FIRST_RECORDS
    stop_if_useless("score", bad[1:], 0)
    stop_if_useless("score", bad, 1)
    stop_if_useless("score", [*bad[1:], BadRecord("missing_image", "gone")], 0)
    with pytest.raises(DataError, match="too wide"):
        stop_if_useless("score", bad, 0)
