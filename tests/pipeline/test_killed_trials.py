"""A run that is killed among its trials repeats none that is finished, and ends as one that was never killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import run_script

import ostlight
from ostlight.pipeline.run_folder import RunFolder
from ostlight.training import trial

CANDIDATES = [{"name": "random"}, {"name": "length"}, {"name": "random", "label": "again"}]
TRIALS = 4
"""Two different subsets, twice."""

SCRIPT = """
import json, os, signal, sys
import ostlight
from ostlight.training import trial
fit, calls = trial.fit, []

def fit_twice(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(*arguments)

trial.fit = fit_twice
ostlight.select(json.loads(sys.argv[1]))
"""


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    options = {"candidates": CANDIDATES, "steps": 2}

    def named(name: str) -> dict[str, Any]:
        return settings(name=name, selector={"name": "best_of", "options": options}, budget={"count": 12})

    return named


def test_after_a_kill_finished_trials_are_not_repeated_and_the_result_is_the_same_to_the_byte(
    config: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT)
    killed = run_script(script, json.dumps(config("killed")))
    assert killed.returncode != 0
    files = {file: file.read_bytes() for file in (tmp_path / "runs" / "killed" / "trials").glob("*.json")}
    assert len(files) == 2, killed.stdout
    assert not (tmp_path / "runs" / "killed" / "selection.parquet").exists()

    fit, trained = trial.fit, []
    monkeypatch.setattr(trial, "fit", lambda *arguments: trained.append(1) or fit(*arguments))
    resumed = ostlight.select(config("killed")).folder
    assert len(trained) == TRIALS - 2
    assert {file: file.read_bytes() for file in files} == files
    whole = ostlight.select(config("whole")).folder
    assert len(trained) == TRIALS - 2 + TRIALS

    assert resumed.selection.read_bytes() == whole.selection.read_bytes()
    one, other = _selecting(resumed), _selecting(whole)
    assert one.pop("trials_kept") == 2
    assert one == other


def _selecting(folder: RunFolder) -> dict[str, Any]:
    """What selecting cost and noted, but for the time."""
    (cost,) = [cost for cost in folder.cost_log.read() if cost.stage == "select"]
    return {"flops": cost.flops, "tokens": cost.tokens, "samples": cost.samples, **cost.more}
