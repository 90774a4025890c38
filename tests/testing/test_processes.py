"""Runs in processes of their own come to an end, or it is said that they did not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import ostlight
from ostlight.testing import forks
from ostlight.testing.pools import Pools
from ostlight.testing.processes import Outcome, kill_and_resume
from ostlight.testing.runs import Runs

pytestmark = pytest.mark.slow


class Lengths(ostlight.Selector):
    """Holds to everything."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [len(s.answer) for s in batch.samples]}


class Absent(Lengths):
    """Cannot be made in another process."""

    def setup(self, context: Any) -> None:
        raise RuntimeError("not in this process")


def runs_of(cls: type, folder: Path) -> Runs:
    return Runs(cls, {}, folder, Pools.make(folder / "pools"))


def test_one_that_takes_too_long_is_told_and_the_next_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = runs_of(Lengths, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(forks, "TIMEOUT_S", 0.1)
        outcome = kill_and_resume(runs, "late")
    assert (outcome.killed, outcome.resumed) == (False, False)
    assert "longer than 0.1 seconds" in outcome.said
    again = kill_and_resume(runs, "in-time")
    assert again == Outcome(killed=True, resumed=True, scored_again=False, said=again.said)


def test_what_a_process_said_of_its_failure_is_kept(tmp_path: Path):
    outcome = kill_and_resume(runs_of(Absent, tmp_path), "absent")
    assert not outcome.killed
    assert "RuntimeError: not in this process" in outcome.said


def test_a_changed_path_reaches_a_server_that_runs_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert kill_and_resume(runs_of(Lengths, tmp_path), "first").resumed
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "late_base.py").write_text("from ostlight import Selector\n")
    (tmp_path / "extra" / "late_lengths.py").write_text(
        'from late_base import Selector\n\n\nclass Late(Selector):\n    """By length."""\n\n'
        "    def score(self, batch):\n        return {'score': [len(s.answer) for s in batch.samples]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "extra"))
    late = importlib.import_module("late_lengths")
    assert kill_and_resume(runs_of(late.Late, tmp_path), "second").resumed
