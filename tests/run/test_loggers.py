"""Every logger writes something that can be read back, none needs an account."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import ostlight


def trained(settings, logger: str) -> Path:
    config = settings()
    config["compute"] |= {"logger": logger}
    ostlight.select(config)
    return ostlight.train(config).parent


def test_csv(settings):
    folder = trained(settings, "csv")
    with (folder / "logs" / "train" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) > 0 for r in rows] == [True] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained(settings, "tensorboard")
    events = EventAccumulator(str(folder / "logs" / "train"))
    events.Reload()
    assert len(events.Scalars("loss")) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(settings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = trained(settings, "wandb")
    runs = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert runs
    assert all(run.stat().st_size > 0 for run in runs)
