"""A comparison from one configuration: every cell once, resumed, told with its cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ostlight
from ostlight.comparison.cells import cell_training, plan_cells
from ostlight.comparison.results import CellResult, Interval, summarise
from ostlight.comparison.table import rich_tables
from ostlight.config import load_config
from ostlight.config.schema import Benchmark, SelectorChoice
from ostlight.errors import ConfigError
from ostlight.selection.budget import Budget


@pytest.fixture
def contest(settings, digits):
    section = {
        "selectors": [{"name": "full"}, {"name": "random"}],
        "budgets": [{"fraction": 0.25, "within": "task"}],
        "protocols": ["fixed_compute"],
        "seeds": [0, 1],
        "truth": str(digits.truth),
    }
    training = {"epochs": 0.25, "batch_size": 4, "lr": 1e-4}
    base = settings(benchmark=section)
    return base | {"target": base["target"] | {"training": training}}


def test_every_cell_once_and_all_outputs(contest, capsys):
    lines = ostlight.benchmark(contest)
    folder = Path(contest["folder"]) / "run"
    assert [(line.label, line.budget) for line in lines] == [
        ("base", ""),
        ("oracle", "25% within task"),
        ("full", ""),
        ("random", "25% within task"),
    ]
    assert {p.name for p in (folder / "cells").iterdir()} == {
        "base-seed0.json",
        *(f"oracle-25%_within_task-fixed_compute-seed{s}.json" for s in (0, 1)),
        *(f"full-fixed_compute-seed{s}.json" for s in (0, 1)),
        *(f"random-25%_within_task-fixed_compute-seed{s}.json" for s in (0, 1)),
    }
    by_label = {line.label: line for line in lines}
    assert by_label["oracle"].defect_share == 0
    assert by_label["full"].defect_share == pytest.approx(25 / 48, abs=0.1)
    assert by_label["base"].training_flops == 0
    assert by_label["full"].training_flops > 0
    for name in ("results.jsonl", "table.md", "table.csv", "table.png"):
        assert (folder / name).stat().st_size > 100
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert set(records[0]) == {"selector", "budget", "protocol", "seed", "group", "metric", "value"}
    assert "accuracy (95%)" in (folder / "table.md").read_text()
    assert "random" in capsys.readouterr().out


def test_a_rerun_changes_no_byte_and_trains_nothing(contest):
    ostlight.benchmark(contest)
    folder = Path(contest["folder"]) / "run"
    before = {n: (folder / n).read_bytes() for n in ("results.jsonl", "table.md", "table.csv")}
    spent = (folder / "ledger.jsonl").read_text()
    ostlight.benchmark(contest)
    assert {n: (folder / n).read_bytes() for n in before} == before
    assert (folder / "ledger.jsonl").read_text() == spent


def test_a_lost_cell_is_run_again_and_comes_out_the_same(contest):
    ostlight.benchmark(contest)
    folder = Path(contest["folder"]) / "run"
    cell = folder / "cells" / "random-25%_within_task-fixed_compute-seed1.json"
    before = json.loads(cell.read_text())
    cell.unlink()
    ostlight.benchmark(contest)
    after = json.loads(cell.read_text())
    assert after["accuracy"] == before["accuracy"]
    assert after["kept"] == before["kept"]


def test_without_a_benchmark_section(settings):
    with pytest.raises(ConfigError, match="the benchmark section is missing"):
        ostlight.benchmark(settings())


def test_protocols_fix_the_passes_or_the_steps(settings):
    config = load_config(settings(), "target.training.epochs=2", "target.training.batch_size=10")
    section = Benchmark(
        selectors=[SelectorChoice("random")],
        budgets=[Budget(fraction=0.2)],
        protocols=["proportional", "fixed_compute"],
        seeds=[0],
    )
    cells = [c for c in plan_cells(section, with_oracle=False) if c.label == "random"]
    trainings = {c.protocol: cell_training(config, c, pool_size=500) for c in cells}
    assert (trainings["proportional"].epochs, trainings["proportional"].steps) == (2, None)
    assert (trainings["fixed_compute"].epochs, trainings["fixed_compute"].steps) == (None, 100)


def test_intervals_are_students_t():
    interval = Interval.of([0.5, 0.6, 0.7])
    assert interval.mean == pytest.approx(0.6)
    # t(0.975, 2 degrees of freedom) = 4.30265
    assert interval.half == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-4)
    assert np.isnan(Interval.of([0.5]).half)


def test_lines_average_over_seeds_only():
    results = [
        CellResult("ost", budget, "fixed_compute", seed, {"all": seed / 10}, training_s=seed)
        for budget in ("20%", "50%")
        for seed in (1, 3)
    ]
    lines = summarise(results)
    assert [(line.budget, line.accuracy["all"].mean, line.training_s) for line in lines] == [
        ("20%", pytest.approx(0.2), 2),
        ("50%", pytest.approx(0.2), 2),
    ]


def test_a_narrow_terminal_gets_the_groups_in_a_table_of_their_own():
    results = [CellResult("ost", "20%", "fixed_compute", s, {"all": 0.8, "read": 0.9, "sum": 0.7}) for s in (0, 1)]
    lines = summarise(results)
    (whole,) = rich_tables(lines, "t", width=200)
    first, second = rich_tables(lines, "t", width=60)
    assert [c.header for c in whole.columns][:4] == ["selected", "accuracy (95%)", "read", "sum"]
    assert "read" not in [c.header for c in first.columns]
    assert [c.header for c in second.columns] == ["selected", "read", "sum"]
    assert str(whole.title) == "t, fixed compute"
