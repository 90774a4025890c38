"""Which files a path names, clones of the hub included."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ostlight.data.files import files_of
from ostlight.data.pool import Pool
from ostlight.errors import DataError

RECORD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


def clone(folder: Path, *names: str, card: str | None = "license: mit") -> Path:
    """A folder with these files, one record in each, and a card."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(RECORD | {"id": name}) + "\n")
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A data set\n")
    return folder


def names(path: str | Path, folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files_of(path)]


@pytest.mark.parametrize("kind", ["dangling", "cyclic", "pipe"])
def test_a_file_of_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    odd = tmp_path / "b.jsonl"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("b.jsonl" if kind == "cyclic" else "gone.jsonl")
    with pytest.raises(DataError) as caught:
        Pool.open(tmp_path)
    assert caught.value.path == odd


def test_a_clone_with_a_data_folder_opens_as_it_is(tmp_path: Path) -> None:
    files = ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    clone(tmp_path, *files)
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs\n")
    assert names(tmp_path, tmp_path) == list(files)
    assert len(Pool.open(tmp_path)) == 2


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
        ("data/train/a.jsonl", "data/test/a.jsonl"),
        ("train/a.jsonl", "test/a.jsonl", "dev/a.jsonl"),
        ("data/my_train.jsonl", "data/my-dev.jsonl"),
        ("data/records.jsonl", "data/eval.jsonl"),
        ("train.jsonl", "test.jsonl"),
        ("records.jsonl", "test.jsonl"),
        ("train.jsonl", "records.jsonl"),
    ],
)
def test_the_training_split_is_read_and_the_others_are_named(files: tuple[str, ...], tmp_path: Path, logged) -> None:
    clone(tmp_path, *files)
    assert names(tmp_path, tmp_path) == [files[0]]
    assert files[1] in logged()


def test_several_splits_of_which_none_is_for_training_are_refused(tmp_path: Path) -> None:
    clone(tmp_path, "data/x-00000-of-00001.jsonl", "data/y-00000-of-00001.jsonl")
    with pytest.raises(DataError, match="several splits"):
        files_of(tmp_path)
    assert names(f"{tmp_path}/data/x-*", tmp_path) == ["data/x-00000-of-00001.jsonl"]


FILES = ("a/one.jsonl", "a/two.jsonl", "b/three.jsonl")


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("configs: [{config_name: a, data_files: a/*.jsonl}]", FILES[:2]),
        ("configs: [{config_name: a, data_files: [a/one.jsonl, b/three.jsonl]}]", (FILES[0], FILES[2])),
        ("configs: [{config_name: a, data_files: [{split: train, path: [a/one.jsonl, a/two.jsonl]}]}]", FILES[:2]),
        ("configs: [{config_name: a, data_files: [{split: test, path: a/*}, {split: train, path: b/*}]}]", FILES[2:]),
        ("configs: [{config_name: a, data_files: {train: b/*, test: a/*}}]", FILES[2:]),
        ("configs: [{config_name: a, data_dir: b}]", FILES[2:]),
        ("configs: [{config_name: a, data_files: a/*}, {config_name: default, data_files: b/*}]", FILES[2:]),
        ("configs: [{config_name: a, data_files: a/*, default: true}, {config_name: b, data_files: b/*}]", FILES[:2]),
    ],
)
def test_the_card_says_which_files_are_read(card: str, found: tuple[str, ...], tmp_path: Path) -> None:
    assert names(clone(tmp_path, *FILES, card=card), tmp_path) == list(found)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("configs: [{config_name: a, data_files: a/*}, {config_name: b, data_files: b/*}]", r"a: a/\*; b: b/\*"),
        ("configs: [{config_name: a, data_files: c/*}]", r"c/\*"),
        ("configs: [{config_name: a, data_files: ../*}]", "leads out"),
        ("configs: [{config_name: a, data_files: /etc/*}]", "leads out"),
        ("configs: [", "not YAML"),
    ],
)
def test_a_card_without_one_answer_is_refused(card: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        files_of(clone(tmp_path / "clone", *FILES, card=card))


def test_a_plain_folder_gives_all_its_files(tmp_path: Path) -> None:
    clone(tmp_path, "test.jsonl", "train.jsonl", "dataset_infos.json", "sub/other.jsonl", card=None)
    assert names(tmp_path, tmp_path) == ["test.jsonl", "train.jsonl"]
    with pytest.raises(DataError):
        files_of(clone(tmp_path / "empty", "notes.txt", card=None))


def test_hidden_files_are_none_of_a_pool_and_capitals_make_no_difference(tmp_path: Path) -> None:
    clone(tmp_path, "a.JSONL", "b.jsonl")
    (tmp_path / "._b.jsonl").write_bytes(b"\0\5\x16\7")
    assert names(tmp_path, tmp_path) == ["a.JSONL", "b.jsonl"]


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path: Path, logged) -> None:
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="b.jsonl.gz"):
        files_of(tmp_path)
    clone(tmp_path, "a.jsonl")
    assert names(tmp_path, tmp_path) == ["a.jsonl"]
    assert "b.jsonl.gz" in logged()


def test_files_of_a_split_that_are_not_read_are_named(tmp_path: Path, logged) -> None:
    clone(tmp_path, "data/train-1.jsonl", "data/test.jsonl")
    (tmp_path / "data" / "train-2.jsonl.gz").write_bytes(b"\x1f\x8b")
    assert names(tmp_path, tmp_path) == ["data/train-1.jsonl"]
    assert "train-2.jsonl.gz" in logged()
    (tmp_path / "data" / "train-1.jsonl").unlink()
    with pytest.raises(DataError, match="train-2.jsonl.gz"):
        files_of(tmp_path)


@pytest.mark.parametrize(
    "card",
    ["configs: yes", "configs:\n- data_files: '**x'", "configs:\n- data_dir: ../..", "configs: [1]"],
)
def test_a_card_that_describes_no_files_is_refused(tmp_path: Path, card: str) -> None:
    clone(tmp_path, "a.jsonl", card=card)
    with pytest.raises(DataError):
        files_of(tmp_path)
