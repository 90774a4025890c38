"""A run that is killed and resumed in other processes finishes, or its failure is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ostlight
from ostlight.errors import SelectorError
from ostlight.testing import processes
from ostlight.testing.pools import PoolFiles
from ostlight.testing.processes import kill_and_resume
from ostlight.testing.runner import SelectorRunner


class Lengths(ostlight.Selector):
    """Keeps the contract."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [len(s.answer) for s in batch.samples]}


class FailsInSetup(Lengths):
    """Cannot be used in another process."""

    def setup(self, context: Any) -> None:
        raise RuntimeError("not in this process")


class FailsOnRankOne(Lengths):
    """The second rank fails, for which the first would wait."""

    def setup(self, context: Any) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise RuntimeError("not on rank 1")


def runner_of(cls: type[ostlight.Selector], folder: Path) -> SelectorRunner:
    return SelectorRunner(cls, {}, folder, PoolFiles.create(folder / "pools"))


@pytest.mark.slow
def test_a_killed_run_is_resumed_on_two_ranks(tmp_path: Path):
    assert kill_and_resume(runner_of(Lengths, tmp_path), "run") is None


@pytest.mark.slow
def test_the_last_line_of_a_process_that_fails_is_reported(tmp_path: Path):
    problem = kill_and_resume(runner_of(FailsInSetup, tmp_path), "run")
    assert problem == "a new process could not run it: RuntimeError: not in this process"


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_other(tmp_path: Path):
    problem = kill_and_resume(runner_of(FailsOnRankOne, tmp_path), "run")
    assert problem == "two ranks could not resume it: RuntimeError: not on rank 1"


def test_a_class_in_a_function_cannot_be_imported_elsewhere():
    class Local(Lengths):
        """Is not at the top level."""

    with pytest.raises(SelectorError, match="processes=False"):
        processes.class_location(Local)


def test_a_class_is_imported_from_its_file_where_its_module_has_no_name():
    location = processes.class_location(Lengths) | {"module": "no_such_module"}
    assert processes.import_class(location).__qualname__ == "Lengths"
