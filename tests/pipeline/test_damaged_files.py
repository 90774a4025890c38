"""Files of a run that are cut, emptied or filled with noise are made again, or named with what to do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ostlight
from ostlight.benchmarking.tasks import OracleTask
from ostlight.data.in_memory import write_records
from ostlight.data.quarantine import Quarantine
from ostlight.errors import DataError, read_if_whole
from ostlight.influence.tensor_files import load_whole, save_whole
from ostlight.models.cost import StageCost
from ostlight.models.saved_files import NAME, check_saved, note_saved
from ostlight.pipeline.warmup import is_whole_proxy
from ostlight.training.checkpoints import Checkpoints
from ostlight.training.kept_trials import KeptTrials


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def noise(content: bytes) -> bytes:
    return random.Random(0).randbytes(max(64, len(content)))


def changed_inside(content: bytes) -> bytes:
    """The last tenth is noise: it lies in what a file holds, not in what describes it."""
    kept = len(content) * 9 // 10
    return content[:kept] + random.Random(1).randbytes(len(content) - kept)


DAMAGES = [cut, emptied, noise]
Damage = Callable[[bytes], bytes]


def damage_file(file: Path, damage: Damage) -> None:
    file.write_bytes(damage(file.read_bytes()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_selection_wrote_is_named_until_it_is_written_again(settings, damage: Damage):
    first = ostlight.select(settings())
    folder = first.folder
    damage_file(folder.selection, damage)
    with pytest.raises(DataError) as caught:
        ostlight.train(settings())
    assert caught.value.path == folder.selection
    with pytest.raises(DataError) as caught:
        ostlight.report(folder.path)
    assert caught.value.path == folder.selection
    damage_file(folder.quarantine, damage)
    with pytest.raises(DataError) as caught:
        Quarantine.read(folder.quarantine)
    assert caught.value.path == folder.quarantine
    for index in folder.index.iterdir():
        damage_file(index, damage)
    assert ostlight.select(settings()).kept.tolist() == first.kept.tolist()
    assert list(Quarantine.read(folder.quarantine)) == []
    ostlight.report(folder.path)


@pytest.mark.parametrize("damage", [*DAMAGES, changed_inside])
@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "chat_template.jinja"])
def test_a_saved_model_that_was_damaged_is_named(proxy, tmp_path: Path, damage: Damage, name: str):
    proxy("float32").save(tmp_path / "saved")
    check_saved(tmp_path / "saved", "")
    damage_file(tmp_path / "saved" / name, damage)
    with pytest.raises(DataError) as caught:
        check_saved(tmp_path / "saved", "")
    assert caught.value.path == tmp_path / "saved" / name


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_proxy_is_not_whole(tmp_path: Path, damage: Damage, logged):
    (tmp_path / "update_norms.npz").write_bytes(b"norms")
    note_saved(tmp_path)
    (tmp_path / "warmup.json").write_text(json.dumps({"made_from": "this", "losses": [1, 2, 3]}))
    assert is_whole_proxy(tmp_path, "this")
    assert not is_whole_proxy(tmp_path, "that")
    assert logged() == ""
    for file in ("update_norms.npz", NAME, "warmup.json"):
        content = (tmp_path / file).read_bytes()
        damage_file(tmp_path / file, damage)
        assert not is_whole_proxy(tmp_path, "this")
        assert file in logged()
        (tmp_path / file).write_bytes(content)


def test_a_damaged_proxy_is_warmed_up_again(settings, logged):
    warm = settings()["proxy"] | {"warmup": {"fraction": 0.5, "training": {"steps": 2, "batch_size": 4}}}
    run = settings(proxy=warm, selector={"name": "loss"})
    first = ostlight.select(run)
    part = sorted(first.folder.scores.iterdir())[0]
    scores = part.read_bytes()
    damage_file(first.folder.proxy / "model.safetensors", changed_inside)
    part.unlink()
    logged()
    assert ostlight.select(run).kept.tolist() == first.kept.tolist()
    assert part.read_bytes() == scores
    assert "model.safetensors" in logged()


@pytest.mark.parametrize("damage", [*DAMAGES, changed_inside])
def test_cached_tensors_are_whole_or_absent(tmp_path: Path, damage: Damage, logged):
    file = tmp_path / "vectors.safetensors"
    tensors = {"one": torch.randn(5, 7), "two": torch.randn(3, dtype=torch.bfloat16), "none": torch.empty(0)}
    save_whole(file, tensors, {"kind": "kfac"})
    found = load_whole(file)
    assert found is not None
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    assert found[1]["kind"] == "kfac"
    assert logged() == ""
    damage_file(file, damage)
    assert load_whole(file) is None
    assert str(file) in logged()


@pytest.mark.parametrize("damage", [*DAMAGES, changed_inside])
def test_a_training_whose_checkpoint_is_damaged_starts_over(tmp_path: Path, damage: Damage, logged):
    file = tmp_path / "run.ckpt"
    torch.save({"global_step": 7, "weights": torch.randn(1000)}, file)
    file.with_suffix(".tokens").write_text("512\n")
    whole = Checkpoints(file, 1)
    assert (whole.start, whole.most_tokens) == (7, 512)
    assert logged() == ""
    damage_file(file, damage)
    file.with_suffix(".tokens").write_bytes(b"\xff\xfe")
    damaged = Checkpoints(file, 1)
    assert (damaged.start, damaged.most_tokens) == (0, None)
    assert str(file) in logged()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trial_is_run_again(tmp_path: Path, damage: Damage, logged):
    KeptTrials(tmp_path, {}).put("a", {"loss": 1.5})
    KeptTrials(tmp_path, {}).put("b", {"loss": 2.5})
    damage_file(tmp_path / "a.json", damage)
    kept = KeptTrials(tmp_path, {})
    assert (kept.get("a"), kept.get("b")) == (None, {"loss": 2.5})
    assert "a.json" in logged()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ending", [".json", ".npy"])
def test_a_damaged_selection_of_a_benchmark_is_made_again(tmp_path: Path, damage: Damage, ending: str, logged):
    class Task(OracleTask):
        def __init__(self) -> None:
            self.file = tmp_path / "oracle.json"
            self.experiment = type("Experiment", (), {"count_defects": lambda self, positions: {}})()  # type: ignore[assignment]

    task = Task()
    assert not task.is_done()
    task.write(np.arange(20), StageCost("select"))
    assert task.is_done()
    assert logged() == ""
    damage_file(task.file.with_suffix(ending), damage)
    assert not task.is_done()
    assert f"oracle{ending}" in logged()


def test_scores_are_not_used_without_the_manifest(settings):
    """Or another seed would select from the scores of this one."""
    folder = ostlight.select(settings(), "seed=1").folder
    (folder.path / "manifest.json").unlink()
    with pytest.raises(DataError) as caught:
        ostlight.select(settings(), "seed=2")
    assert caught.value.path == folder.path / "manifest.json"


def test_a_damaged_built_in_pool_is_written_again(settings, logged):
    data = {"digitmath": {"pool": 12, "anchors": 7, "dev": 7, "test": 7}, "pool": {}, "anchors": {}, "test": {}}
    folder = ostlight.select(settings(**data)).folder
    file = folder.path / "data" / "test.parquet"
    whole = file.read_bytes()
    damage_file(file, changed_inside)
    logged()
    ostlight.select(settings(**data))
    assert file.read_bytes() == whole
    assert str(file) in logged()


def test_records_from_memory_are_written_again_where_they_are_others(tmp_path: Path, logged):
    records = [{"id": "a", "text": "1"}, {"id": "b", "text": "2"}]
    file, is_new = write_records(records, tmp_path, "pool")
    whole = file.read_bytes()
    assert is_new
    file.write_bytes(whole.replace(b"2", b"3"))
    assert write_records(records, tmp_path, "pool") == (file, False)
    assert file.read_bytes() == whole
    assert str(file) in logged()


def test_what_the_machine_refuses_is_no_damage(tmp_path: Path):
    """A file that could not be opened is not made again: it may hold hours of work."""

    def refused() -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with pytest.raises(DataError):
        read_if_whole(tmp_path, refused, "it is made again")
    with pytest.raises(RuntimeError):
        read_if_whole(tmp_path, lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")), "made again")
