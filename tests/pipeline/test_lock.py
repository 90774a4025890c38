"""A run folder has one owner at a time, or several that may run side by side."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ostlight
from ostlight.config import load_config
from ostlight.errors import ConfigError, RunInUseError
from ostlight.pipeline.lock import RUN, in_use_by, locked, owners
from ostlight.pipeline.run_folder import RunFolder

HOLD = (
    "import sys; from pathlib import Path; from ostlight.pipeline.lock import locked\n"
    "with locked(Path(sys.argv[1]), 'run', '`ostlight select`', 'wait', shared=len(sys.argv) > 2):\n"
    "    print('locked', flush=True); sys.stdin.read()"
)


@contextmanager
def other(folder: Path, *shared: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *shared], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def own(folder: Path, shared: bool = False) -> bool:
    """Whether this process can have it."""
    try:
        with locked(folder, RUN, "`ostlight train`", "wait", shared):
            return True
    except RunInUseError:
        return False


def test_a_folder_in_use_is_refused_with_the_host_and_process_of_its_owner(tmp_path: Path):
    with other(tmp_path) as process:
        for _ in range(2):  # a refused attempt must not lose the owner
            with pytest.raises(RunInUseError) as refused, locked(tmp_path, RUN, "`ostlight train`", "wait"):
                pass
            assert refused.value.owners == [f"`ostlight select` (pid {process.pid} on {socket.gethostname()})"]
            assert in_use_by(tmp_path) == refused.value.owners
    assert own(tmp_path)  # killed, it holds nothing
    assert owners(tmp_path) == in_use_by(tmp_path) == []
    assert [path.name for path in (tmp_path / ".locks").iterdir()] == [RUN]


def test_a_folder_is_free_afterwards_even_if_the_stage_failed(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, RUN, "`ostlight select`", "wait"):
        _ = 1 / own(tmp_path)  # nor is it this process's a second time
    assert own(tmp_path)


def test_those_that_share_run_side_by_side(tmp_path: Path):
    with other(tmp_path, "shared"):
        assert own(tmp_path, shared=True)
        assert not own(tmp_path)
        assert in_use_by(tmp_path) == []
    with other(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ostlight.pipeline.lock.SWEEPING_S", 0.0)
        assert not own(tmp_path, shared=True)


def test_a_fork_does_not_keep_the_lock_of_a_process_that_is_gone(tmp_path: Path):
    """As workers that read ahead do, which notice only later."""
    with locked(tmp_path, RUN, "`ostlight select`", "wait"):
        end = multiprocessing.get_context("fork").Event()
        worker = multiprocessing.get_context("fork").Process(target=end.wait)
        worker.start()
        assert not own(tmp_path)
    assert own(tmp_path)
    end.set()
    worker.join()


def test_where_there_are_no_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    swept: list[int] = []
    with locked(tmp_path, RUN, "`ostlight select`", "wait", while_alone=lambda: swept.append(1)):
        assert "no locks" in logged()
    assert not swept, "another process may be writing"


def test_stages_and_who_may_run_beside_them(settings, tmp_path: Path, logged):
    folder = ostlight.select(settings()).folder
    config = load_config(settings())
    with RunFolder.owned(config, "select"):
        for stage in (ostlight.select, ostlight.train, ostlight.evaluate):
            with pytest.raises(RunInUseError):
                stage(settings())
        logged()
        ostlight.report(folder.path)  # reads only, and says so
        assert "in use" in logged()
    with RunFolder.owned(config, "train", shared=True), folder.owned_target(folder.targets / "a"):
        with pytest.raises(RunInUseError):
            ostlight.select(settings())
        with pytest.raises(RunInUseError):
            ostlight.train(settings(), "target.name=a")
        assert ostlight.train(settings(), "target.name=b").name == "b"
        ostlight.evaluate(settings(), "target.name=b")


def test_only_the_first_rank_locks(settings, monkeypatch: pytest.MonkeyPatch):
    config = load_config(settings())
    with RunFolder.owned(config, "select"):
        monkeypatch.setenv("RANK", "1")
        with RunFolder.owned(config, "select"):
            pass


def test_what_killed_processes_left_goes_at_the_next_start(settings):
    folder = ostlight.select(settings()).folder.path
    left = [folder / ".selection.0123456789ab.tmp.parquet", folder / "targets" / ".a.0123456789ab.tmp" / "config.json"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    theirs = folder / "subset" / ".a.0123456789ab.tmp.json"
    theirs.touch()
    ostlight.train(settings())
    assert not any(file.exists() for file in left)
    assert theirs.exists()


def test_what_other_ranks_write_at_the_start_stays(settings, monkeypatch: pytest.MonkeyPatch):
    config = load_config(settings())
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = RunFolder.path_of(config) / "index" / ".pool.0123456789ab.tmp.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    with RunFolder.owned(config, "train", shared=True):
        assert file.exists()
    assert file.exists()
    with RunFolder.owned(config, "select"):
        assert file.exists()
    assert not file.exists()


def test_a_folder_that_cannot_be_written_in_is_one_line(tmp_path: Path):
    (tmp_path / ".locks").touch()
    with pytest.raises(ConfigError), locked(tmp_path, RUN, "`ostlight select`", "wait"):
        pass
