"""A selection says what it was made with, and what follows it relies on that and on no configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.config import load_config
from ostlight.errors import DataError, RunChangedError
from ostlight.pipeline.run_folder import RunFolder
from ostlight.reporting.finished_run import FinishedRun


def test_other_records_at_the_same_places_are_not_trained_on(settings, digits, tmp_path: Path):
    pool = tmp_path / "pool.parquet"
    shutil.copy(digits.pool, pool)
    config = settings(pool={"path": str(pool)})
    ostlight.select(config)
    before = pool.read_bytes()
    pq.write_table(pq.read_table(pool).slice(1), pool)
    with pytest.raises(RunChangedError) as refused:
        ostlight.train(config)
    assert refused.value.changed == ["pool"]
    pool.write_bytes(before)
    ostlight.train(config)


def test_other_settings_than_the_selections_are_named(settings, logged):
    ostlight.select(settings(), "budget.count=6")
    logged()
    ostlight.train(settings(), "budget.count=6")
    assert "other settings" not in logged()
    ostlight.train(settings(), "budget.count=7")
    assert "other settings than these: budget" in logged()


def test_a_report_names_the_budget_of_the_selection_that_it_shows(settings):
    """The next selection has written its configuration, and was killed before it kept anything."""
    folder = ostlight.select(settings(), "budget.count=6").folder
    RunFolder(folder.path, load_config(settings(), "budget.count=7")).write_config()
    (budget,) = FinishedRun.open(folder.path).budgets
    assert budget.count == 6


def test_where_nothing_is_kept_the_earlier_selection_stays(settings):
    folder = ostlight.select(settings(), "budget.count=6").folder
    before = folder.selection.read_bytes()
    with pytest.raises(DataError):
        ostlight.select(settings(), "budget.threshold=1e9")
    assert folder.selection.read_bytes() == before
