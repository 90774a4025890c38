"""A folder is replaced as a whole, and a replacement that was broken off is finished at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ostlight.data import atomic
from ostlight.data.atomic import atomic_folder, sweep


def write(folder: Path, **files: str) -> None:
    with atomic_folder(folder) as unfinished:
        for name, text in files.items():
            (unfinished / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return str(request.param)


def test_nothing_of_the_older_one_survives(tmp_path: Path, way: str) -> None:
    write(tmp_path / "deep" / "a", one="1", two="2")
    write(tmp_path / "deep" / "a", two="3")
    assert content(tmp_path / "deep" / "a") == {"two": "3"}
    assert os.listdir(tmp_path / "deep") == ["a"]


def test_an_error_keeps_the_older_one(tmp_path: Path, way: str) -> None:
    write(tmp_path / "a", one="1")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as unfinished:
        (unfinished / "two").write_text(str(1 / 0))
    assert content(tmp_path / "a") == {"one": "1"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, way: str) -> None:
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "a")
    write(tmp_path / "a", one="1")
    assert (tmp_path / "a").is_symlink()
    assert content(tmp_path / "disk" / "a") == {"one": "1"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(5))
def test_killed_anywhere_the_old_or_the_new_is_there_after_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Without an exchange there are three renames and a removal: a kill before each, and none."""
    write(tmp_path / "a", old="1")
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    left = iter([None] * step)

    def next_or_killed(call):
        def wrapped(*arguments, **named):
            if next(left, Killed) is Killed:
                raise Killed
            return call(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", next_or_killed(Path.rename))
        patch.setattr(atomic.shutil, "rmtree", next_or_killed(atomic.shutil.rmtree))
        try:
            write(tmp_path / "a", new="2")
        except Killed:
            assert step < 5
    swept = sweep(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert content(tmp_path / "a") == ({"old": "1"} if step < 2 else {"new": "2"})
    assert bool(swept) == (step < 4)
    assert not sweep(tmp_path)


def test_other_hidden_files_stay(tmp_path: Path) -> None:
    names = [".a.tmp", ".a.0123.tmp", "a.0123456789ab.tmp", ".files", ".a.0123456789ab.tmp.b.c"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".a.0123456789ab.tmp").touch()
    assert sweep(tmp_path, kept=["kept"]) == []


def test_a_leftover_link_goes_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / ".b.0123456789ab.tmp").symlink_to("a", target_is_directory=True)
    assert sweep(tmp_path) == [tmp_path / ".b.0123456789ab.tmp"]
    assert os.listdir(tmp_path) == ["a"]
