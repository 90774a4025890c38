"""Every logger writes something that can be read back; none needs an account."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ostlight
from ostlight.benchmarking.files import write_all
from ostlight.benchmarking.results import RunResult, summarise
from ostlight.config.load import load_config
from ostlight.config.schema import Compute
from ostlight.errors import ConfigError
from ostlight.training.loggers import log_comparison
from ostlight.training.trainer import make_logger

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def trained(settings, logger: str) -> Path:
    config = settings()
    config["compute"] |= {"logger": logger}
    ostlight.select(config)
    return ostlight.train(config).parent.parent


def test_csv_logs_the_loss_of_each_step(settings):
    folder = trained(settings, "csv")
    with (folder / "logs" / "train" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) > 0 for r in rows] == [True] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_logs_the_loss_of_each_step(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained(settings, "tensorboard")
    events = EventAccumulator(str(folder / "logs" / "train"))
    events.Reload()
    assert len(events.Scalars("loss")) == 3


def compared(settings, digits, logger: str, **section: Any) -> Path:
    """A benchmark of two runs: the untrained model, and one of three steps."""
    section = {"selectors": [{"name": "random"}], "budgets": [{"fraction": 0.5}], "seeds": [0], "workers": 1} | section
    config = settings(benchmark=section)
    config["compute"] |= {"logger": logger}
    ostlight.benchmark(config)
    return Path(config["folder"]) / "run"


def test_csv_holds_every_run_and_another_logger_repeats_none(settings, digits):
    folder = compared(settings, digits, "csv")
    (run,) = folder.glob("trained/random*.json")
    trained, tested = json.loads(run.read_text()), []
    for name in ("base-seed0", "random-50%-equal_steps-seed0"):
        with (folder / "logs" / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        tested.append([float(r["accuracy/all"]) for r in rows if r["accuracy/all"]])
    assert len([r for r in rows if r["loss"]]) == 3
    assert tested[1] == [pytest.approx(trained["values"]["all"])]
    assert len(tested[0]) == 1
    before = (folder / "cost_log.jsonl").read_bytes()
    compared(settings, digits, "none")
    assert (folder / "cost_log.jsonl").read_bytes() == before
    assert len(list((folder / "trained").iterdir())) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_of_a_run_holds_its_test_after_its_training(settings, digits):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = compared(settings, digits, "tensorboard")
    events = EventAccumulator(str(folder / "logs" / "random-50%-equal_steps-seed0"))
    events.Reload()
    assert len(events.Scalars("loss")) == 3
    assert [e.step for e in events.Scalars("accuracy/all")] == [3]


def write_comparison(folder: Path) -> None:
    (folder / "table.csv").write_text("selected,accuracy,kept,seeds\nbase,0.4,,1\nost,0.75 ± 0.01,20,2\n")
    (folder / "table.md").write_text("| selected | accuracy |\n| --- | ---: |\n| ost | 0.75 ± 0.01 |\n")
    Image.new("RGB", (4, 3), "red").save(folder / "table.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_comparison_in_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_comparison(tmp_path)
    log_comparison(Compute(logger="tensorboard"), tmp_path)
    events = EventAccumulator(str(tmp_path / "logs" / "benchmark"))
    events.Reload()
    assert events.Tags()["images"] == ["plot/table"]
    (text,) = events.Tensors("table/text_summary")
    assert "| ost | 0.75 ± 0.01 |".encode() in text.tensor_proto.string_val[0]


def test_comparison_for_csv_and_none_writes_no_log(tmp_path: Path):
    write_comparison(tmp_path)
    log_comparison(Compute(logger="none"), tmp_path)
    log_comparison(Compute(logger="csv"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_losses_and_the_comparison(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    folder = trained(settings, "mlflow")
    write_comparison(folder)
    log_comparison(Compute(logger="mlflow"), folder)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("ostlight")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"run-select", "run-train", "run-benchmark"} <= set(runs), "beside a run of scoring, which is empty"
    assert runs["run-select"].data.metrics["kept"] == 10
    assert len(client.get_metric_history(runs["run-train"].info.run_id, "loss")) == 3
    files = {file.path for file in client.list_artifacts(runs["run-benchmark"].info.run_id)}
    assert files == {"table.csv", "table.md", "table.png"}


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_the_losses_and_the_comparison(settings, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import ostlight
from ostlight.config.schema import Compute
from ostlight.training.loggers import log_comparison
from test_loggers import write_comparison
config = {settings(compute=settings()["compute"] | {"logger": "trackio"})!r}
ostlight.select(config)
folder = ostlight.train(config).parent.parent
write_comparison(folder)
log_comparison(Compute(logger="trackio"), folder)
"""
    # In a process of its own: Trackio reads where its runs are kept when it is imported.
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "trackio" / "ostlight.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics").fetchall()
    logged = {name: [json.loads(metrics) for run, metrics in rows if run == name] for name, _ in rows}
    assert set(logged) == {"run-select", "run-train", "run-benchmark"}
    assert logged["run-select"][0]["kept"] == 10
    assert len([row for row in logged["run-train"] if "loss" in row]) == 3
    assert {"table", "plot/table"} <= set(logged["run-benchmark"][0])


@pytest.mark.parametrize("logger", ["mlflow", "trackio"])
def test_a_logger_that_is_not_installed_is_named(settings, monkeypatch: pytest.MonkeyPatch, logger: str) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(ConfigError) as error:
        make_logger(logger, Path("run"), "train")
    assert len(error.value.problems) == 1


@pytest.fixture
def wandb_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str, str], list[dict[str, Any]]]]:
    """What this process logs to Weights & Biases, offline, by project, group and name of the run."""
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    rows = defaultdict[tuple[str, str, str], list[dict[str, Any]]](list)
    log = wandb.Run.log

    def record(run: wandb.Run, data: dict[str, Any], *args: Any, **options: Any) -> None:
        rows[run.project, run.group, run.name].append(data)
        log(run, data, *args, **options)

    monkeypatch.setattr(wandb.Run, "log", record)
    yield rows
    wandb.finish()
    wandb.teardown()


@pytest.mark.filterwarnings("ignore")
def test_comparison_with_blanks_in_wandb(tmp_path: Path, wandb_rows):
    base = RunResult("base", "", "", 0, {"all": 0.25, "sum": 0.5}, items=[1, 0, 0, 0])
    trained = [
        RunResult(
            label, "20%", "equal_steps", s, {"all": 0.5, "sum": 1.0}, kept=20, items=[1, 1, 0, 0], training_flops=1e9
        )
        for label in ("random", "ost")
        for s in (0, 1)
    ]
    results = [base, *trained]
    write_all(results, summarise(results, "random"), "random", tmp_path, "t")
    log_comparison(Compute(logger="wandb"), tmp_path)
    ((_, _, name), logged) = next(iter(wandb_rows.items()))
    assert name == f"{tmp_path.name}-benchmark"
    merged = {key: value for data in logged for key, value in data.items()}
    assert {"table", "plot"} <= {key.split("/")[0] for key in merged}
    table = merged["table"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert [row["selector"] for row in rows] == ["base", "random", "ost"]
    assert [row["samples kept"] for row in rows] == [None, 20, 20]
    assert [row["sum"] for row in rows] == [50, 100, 100]
    assert [row["difference to random, points (95%)"] for row in rows] == [None, None, "+0.0 [+0.0, +0.0]"]
    assert [row["selection FLOPs"] for row in rows] == [None] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_holds_every_stage_and_the_comparison(settings, wandb_rows):
    folder = trained(settings, "wandb")
    config = settings()
    config["compute"] |= {"logger": "wandb"}
    result = ostlight.evaluate(config)
    write_comparison(folder)
    log_comparison(Compute(logger="wandb"), folder)
    stages = ("select", "train", "evaluate", "benchmark")
    assert set(wandb_rows) == {("ostlight", "run", f"run-{stage}") for stage in stages}
    rows = {stage: wandb_rows["ostlight", "run", f"run-{stage}"] for stage in stages}
    losses = [row["loss"] for row in rows["train"] if "loss" in row]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    assert rows["select"][0]["kept"] == 10
    assert rows["evaluate"][0]["accuracy/all"] == pytest.approx(result.accuracy["all"])
    logged = {key: value for row in rows["benchmark"] for key, value in row.items()}
    assert {"table", "plot"} <= {key.split("/")[0] for key in logged}
    assert logged["table"].data == [["base", "0.4", None, 1], ["ost", "0.75 ± 0.01", 20, 2]]
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/**/*.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_demo_logs_every_run_of_parallel_workers_in_wandb_offline(settings, digits, wandb_rows):
    import wandb

    folder = compared(settings, digits, load_config(DEMO).compute.logger, seeds=[0, 1], workers=2)
    wandb.finish()
    wandb.teardown()  # waits until everything is written
    files = [file.read_bytes() for file in (folder / "wandb").glob("offline-run-*/run-*.wandb")]
    trained_runs = [f"run-random-50%-equal_steps-seed{seed}" for seed in (0, 1)]
    names = [*trained_runs, "run-base-seed0", "run-benchmark"]
    content = {name: file for name in names for file in files if name.encode() in file}
    assert len(files) == len(content) == 4
    for name in trained_runs:
        assert b"loss" in content[name]
        assert b"accuracy/all" in content[name]
