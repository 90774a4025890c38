"""A run whose pool, images, anchors and proxy lie elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import ostlight
from ostlight.data import remote_cache
from ostlight.digitmath.model import checkpoint
from ostlight.errors import RunChangedError
from ostlight.selection.scores import read_score_table


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The memory file system with a pool of three records, two images of which one is missing, and the proxy."""
    monkeypatch.setenv(remote_cache.CACHE_FOLDER, str(tmp_path / "cache"))
    remote_cache.cache_folder.cache_clear()
    filesystem = fsspec.filesystem("memory")
    for k, image in enumerate(["a.png", "b.png", None]):
        record = {"id": f"r{k}", "question": "q?", "answer": "1"} | ({"image": image} if image else {})
        filesystem.pipe(f"memory://pool/{k}.jsonl", (json.dumps(record) + "\n").encode())
    write_image(filesystem, tmp_path, "a.png", "red")
    filesystem.put(str(checkpoint("proxy")), "memory://models/proxy", recursive=True)
    yield filesystem
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    remote_cache.cache_folder.cache_clear()


def write_image(filesystem: Any, tmp_path: Path, name: str, colour: str) -> None:
    Image.new("RGB", (16, 16), colour).save(tmp_path / "image.bmp")
    filesystem.pipe(f"memory://images/{name}", (tmp_path / "image.bmp").read_bytes())


def test_a_run_on_remote_files(settings: Callable[..., dict[str, Any]], store: Any, tmp_path: Path) -> None:
    config = settings(
        pool={"path": "memory://pool", "image_root": "memory://images"},
        anchors={"path": "memory://pool/2.jsonl"},
        proxy={"path": "memory://models/proxy", "warmup": {"fraction": 0}},
        selector={"name": "loss"},
        budget={"fraction": 1.0},
    )
    selection = ostlight.select(config)
    assert selection.rejected == {"missing_image": 1}
    before = {row["id"]: row["score"] for row in read_score_table(selection.folder.scores).to_pylist()}
    kept = (selection.folder.subset / "0.jsonl").read_bytes()
    assert kept == store.cat_file("memory://pool/0.jsonl")
    write_image(store, tmp_path, "b.png", "green")
    again = ostlight.select(config)
    assert again.rejected == {}
    after = {row["id"]: row["score"] for row in read_score_table(again.folder.scores).to_pylist()}
    assert {name: after[name] for name in ("r0", "r2")} == {name: before[name] for name in ("r0", "r2")}
    write_image(store, tmp_path, "a.png", "blue")
    with pytest.raises(RunChangedError):
        ostlight.select(config)
