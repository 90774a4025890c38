"""Images beside the pool are part of what a score was made from: others are refused, missing ones are tried again."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import ostlight
from ostlight.errors import RunChangedError
from ostlight.pipeline.fingerprint import package_versions
from ostlight.selection.scores import read_score_table

Config = Callable[..., dict[str, Any]]


def write_image(path: Path, colour: str = "red", size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path, format="BMP")
    return path


def write_pool(path: Path, *names: str, **more: Any) -> Path:
    """A record for each image, and one without."""
    records = [
        {"messages": turns("<image>\nquestion?", f"answer {k}"), "id": f"r{k}", "images": [name], **more}
        for k, name in enumerate(names)
    ]
    records.append({"messages": turns("hi", "yes"), "id": "text", **more})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rows(selection: Any) -> dict[str, Any]:
    return {row["id"] or row["position"]: row for row in read_score_table(selection.folder.scores).to_pylist()}


@pytest.fixture
def config(settings: Config, tmp_path: Path) -> Config:
    def make(selector: str = "length", **pool: Any) -> dict[str, Any]:
        pool = {"path": str(tmp_path / "pool.jsonl"), **pool}
        return settings(pool=pool, selector={"name": selector}, budget={"fraction": 1.0})

    return make


@pytest.mark.parametrize("selector", ["length", "loss"])
def test_an_image_written_since_is_refused(config: Config, tmp_path: Path, selector: str) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png", "b.png")
    write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")
    assert ostlight.select(config(selector)).rejected == {}
    ostlight.select(config(selector))  # nothing changed
    write_image(tmp_path / "b.png", "blue")  # as many bytes
    with pytest.raises(RunChangedError) as caught:
        ostlight.select(config(selector))
    assert caught.value.changed == ["images"]
    assert "b.png" in str(caught.value)


def test_an_image_touched_is_the_same_where_its_content_was_read(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    os.utime(write_image(tmp_path / "a.png"), (1, 1))
    ostlight.select(config("loss"))
    os.utime(tmp_path / "a.png", (2, 2))
    ostlight.select(config("loss"))


def test_an_image_that_is_gone_is_refused(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    write_image(tmp_path / "a.png")
    ostlight.select(config())
    (tmp_path / "a.png").unlink()
    with pytest.raises(RunChangedError):
        ostlight.select(config())


@pytest.mark.parametrize("size", [16, 20], ids=["as many bytes", "more bytes"])
def test_another_image_root_with_other_images_is_refused(config: Config, tmp_path: Path, size: int) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    os.utime(write_image(tmp_path / "one" / "a.png"), (1, 1))
    os.utime(write_image(tmp_path / "two" / "a.png", "blue", size), (1, 1))
    ostlight.select(config(image_root=str(tmp_path / "one")))
    with pytest.raises(RunChangedError) as caught:
        ostlight.select(config(image_root=str(tmp_path / "two")))
    assert caught.value.changed == ["images"]


def test_another_image_root_with_the_same_images_is_taken(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    write_image(tmp_path / "one" / "a.png")
    before = ostlight.select(config("loss", image_root=str(tmp_path / "one")))
    scores = rows(before)
    shutil.move(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    assert rows(ostlight.select(config("loss", image_root=str(tmp_path / "two")))) == scores


@pytest.mark.parametrize("selector", ["length", "loss"])
def test_images_fetched_later_are_scored_and_nothing_else_is(config: Config, tmp_path: Path, selector: str) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png", "b.png", "missing.png")
    write_image(tmp_path / "a.png")
    before = ostlight.select(config(selector))
    assert before.rejected == {"missing_image": 2}
    scored = rows(before)
    write_image(tmp_path / "b.png")
    after = ostlight.select(config(selector))
    assert after.rejected == {"missing_image": 1}
    assert len(after.kept) == 3
    found = rows(after)
    assert found["r0"] == scored["r0"]
    assert found["text"] == scored["text"]
    assert found["r1"]["state"] == "ok"
    assert found["r1"]["reason"] is None
    assert [row["position"] for row in found.values()] == [0, 1, 2, 3]
    write_image(tmp_path / "b.png", "blue")
    with pytest.raises(RunChangedError):  # what was scored later is watched too
        ostlight.select(config(selector))


def test_a_mended_image_root_scores_what_failed(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    write_image(tmp_path / "right" / "a.png")
    (tmp_path / "wrong").mkdir()
    assert ostlight.select(config(image_root=str(tmp_path / "wrong"))).rejected == {"missing_image": 1}
    after = ostlight.select(config(image_root=str(tmp_path / "right")))
    assert after.rejected == {}
    assert not pq.read_table(after.folder.quarantine).num_rows


@pytest.mark.parametrize(("kept", "reason"), [(60, "corrupt_image"), (0, "not_an_image")], ids=["cut", "no image"])
def test_an_image_mended_is_scored(config: Config, tmp_path: Path, kept: int, reason: str) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    image = write_image(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(image[:kept] or b"a web page")
    assert ostlight.select(config("loss")).rejected == {reason: 1}
    write_image(tmp_path / "a.png")
    assert ostlight.select(config("loss")).rejected == {}


@pytest.mark.parametrize(
    ("change", "name"), [({"pool": {"format": "question"}}, "pool"), ({"compute": {"precision": "bf16-mixed"}}, "")]
)
def test_the_format_and_the_precision_are_part_of_a_score(
    config: Config, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    write_pool(tmp_path / "pool.jsonl", question="q?", answer="a")
    before = config("loss")
    ostlight.select(before)
    after = {key: value | change.get(key, {}) if isinstance(value, dict) else value for key, value in before.items()}
    with pytest.raises(RunChangedError) as caught:
        ostlight.select(after)
    assert caught.value.changed == [name or "compute.precision"]


def test_the_versions_of_libraries_are_part_of_a_score(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(tmp_path / "pool.jsonl")
    ostlight.select(config())
    monkeypatch.setattr("ostlight.pipeline.fingerprint.version", lambda name: "99")
    package_versions.cache_clear()
    try:
        with pytest.raises(RunChangedError) as caught:
            ostlight.select(config())
    finally:
        monkeypatch.undo()
        package_versions.cache_clear()
    assert caught.value.changed == ["package versions"]


def test_training_refuses_images_that_changed_since_they_were_scored(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.png")
    write_image(tmp_path / "a.png")
    ostlight.select(config())
    write_image(tmp_path / "a.png", "blue")
    with pytest.raises(RunChangedError):
        ostlight.train(config())


def test_the_images_of_anchors_are_part_of_a_score(config: Config, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl")
    anchors = write_pool(tmp_path / "anchors.jsonl", "a.png")
    write_image(tmp_path / "a.png")
    with_anchors = config() | {"anchors": {"path": str(anchors)}}
    ostlight.select(with_anchors)
    os.utime(tmp_path / "a.png", (1, 1))
    ostlight.select(with_anchors)
    write_image(tmp_path / "a.png", "blue")
    with pytest.raises(RunChangedError) as caught:
        ostlight.select(with_anchors)
    assert caught.value.changed == ["anchors"]


def test_a_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(config: Config, tmp_path: Path) -> None:
    repository = tmp_path / "datasets--org--set"
    snapshot, blobs = repository / "snapshots" / "abc123", repository / "blobs"
    (snapshot / "images").mkdir(parents=True)
    write_pool(tmp_path / "records", "images/a.png", "images/outside.png")
    blobs.mkdir()
    (tmp_path / "records").rename(blobs / "ff")
    write_image(blobs / "0a")
    write_image(tmp_path / "outside.png")
    (snapshot / "train.jsonl").symlink_to("../../blobs/ff")
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/0a")
    (snapshot / "images" / "outside.png").symlink_to(tmp_path / "outside.png")
    selection = ostlight.select(config("loss", path=str(snapshot)))
    assert selection.rejected == {"image_outside_root": 1}
    assert (selection.folder.subset / "images" / "a.png").read_bytes() == (blobs / "0a").read_bytes()


def test_a_corrupt_image_in_the_record_is_not_scored_again(config: Config, tmp_path: Path, logged) -> None:
    write_pool(tmp_path / "pool.jsonl", "data:image/bmp;base64," + base64.b64encode(b"BM cut off").decode())
    assert ostlight.select(config("loss")).rejected == {"corrupt_image": 1}
    logged()
    ostlight.select(config("loss"))
    assert "all 2 records are scored" in logged()


def test_a_repaired_image_is_scored_after_an_end_between_the_files(config: Config, tmp_path: Path, monkeypatch) -> None:
    write_pool(tmp_path / "pool.jsonl", "a.bmp", "b.bmp")
    whole = write_image(tmp_path / "a.bmp").read_bytes()
    write_image(tmp_path / "b.bmp")
    (tmp_path / "a.bmp").write_bytes(whole[:60])
    assert ostlight.select(config("loss")).rejected == {"corrupt_image": 1}
    (tmp_path / "a.bmp").write_bytes(whole)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ostlight.pipeline.scoring.writer.write_parquet", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            ostlight.select(config("loss"))
    repaired = ostlight.select(config("loss"))
    assert repaired.rejected == {}
    assert len(repaired.kept) == 3
