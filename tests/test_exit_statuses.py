"""Exit statuses of the command line: 0 done, 1 error, 2 written wrongly, 3 written and doubtful.

Those of signals are in ``test_interrupts``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import ostlight
from ostlight import cli
from ostlight.errors import machine_problem
from ostlight.logs import log_to_file

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The console script: its exit status, and what it wrote to standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["ostlight", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def config(settings, tmp_path: Path) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(settings()))
    return str(file)


@pytest.fixture
def mostly_bad(settings, tmp_path: Path) -> str:
    """5 of 8 records have no answer."""
    turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    records = [{"id": str(k), "conversations": turns if k % 3 == 0 else turns[:1]} for k in range(8)]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(record) + "\n" for record in records))
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(settings(pool={"path": str(pool)}, budget={"count": 2})))
    return str(file)


def test_done_wrong_and_written_wrongly(run: Run, config: str):
    assert run("select", config)[0] == 0
    assert run("select", config, "pool.path=nowhere.jsonl")[0] == 1
    assert run("selct", config)[0] == 2
    assert run("select")[0] == 2


def test_a_selection_from_a_pool_that_is_mostly_rejected(run: Run, mostly_bad: str, tmp_path: Path):
    status, first = run("select", mostly_bad)
    assert status == 3
    assert (tmp_path / "runs" / "run" / "subset" / "pool.jsonl").exists(), "it is written all the same"
    status, again = run("select", mostly_bad)
    assert status == 3, "whoever asks again gets the same answer"
    assert first.count("pool.jsonl:record") == 3
    assert again.count("pool.jsonl:record") == 0, "the same rejections are listed once"
    assert "no_answer" in again
    assert run("select", mostly_bad, "tolerate=[divergence]")[0] == 3
    assert run("select", mostly_bad, "tolerate=[rejections]")[0] == 0


def test_a_selection_after_a_warm_up_that_diverged(settings):
    """From Python there is no status, but the problem."""
    warm = {"fraction": 0.5, "training": {"lr": 1.0, "batch_size": 4, "schedule": "constant"}}
    diverged = settings(proxy=settings()["proxy"] | {"warmup": warm}, selector={"name": "loss"})
    assert len(ostlight.select(diverged).problems) == 1
    assert ostlight.select(diverged, "tolerate=[divergence]").problems == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_refusal_of_the_machine_is_one_line(run: Run, config: str, monkeypatch: pytest.MonkeyPatch, number: int):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    status, err = run("select", config)
    assert status == 1
    assert os.strerror(number) in err
    assert "Traceback" not in err


def test_words_of_libraries_are_recognised():
    """safetensors, DuckDB and torch say so in errors of their own."""
    assert machine_problem(RuntimeError("I/O error: No space left on device (os error 28)")) is not None
    wrapped = RuntimeError("unexpected pos 576 vs 470")
    wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert machine_problem(wrapped) is not None
    assert machine_problem(ValueError("a bug")) is None


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, logged):
    (tmp_path / "logs").write_text("a file, no folder")
    with log_to_file(tmp_path / "logs" / "ostlight.log"):
        logging.getLogger("ostlight").info("first")
        logging.getLogger("ostlight").info("second")
    lines = logged().splitlines()
    assert [line for line in lines if line in ("first", "second")] == ["first", "second"]
    assert len(lines) == 3
    full = Path("/dev/full")
    if full.exists():
        with log_to_file(full):
            logging.getLogger("ostlight").info("third")
        assert logged().count(str(full)) == 1


def test_a_judge_that_waits_for_replies_is_no_error(run: Run, settings, tmp_path: Path):
    choice = {"name": "llm_judge", "options": {"backend": "batch", "model": "m"}}
    file = tmp_path / "judged.yaml"
    file.write_text(yaml.safe_dump(settings(selector=choice)))
    status, said = run("select", str(file))
    assert status == cli.PENDING
    assert "error" not in said
    assert "requests-" in said
