"""Every logger writes something that can be read back, none needs an account."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ostlight
from ostlight.benchmarking.files import write_all
from ostlight.benchmarking.results import RunResult, summarise
from ostlight.config.load import load_config
from ostlight.config.schema import Compute
from ostlight.training.loggers import log_comparison

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


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


def compared(settings, digits, logger: str, **section: Any) -> Path:
    """A benchmark of two cells: the untrained model, and one of three steps."""
    section = {"selectors": [{"name": "random"}], "budgets": [{"fraction": 0.5}], "seeds": [0], "workers": 1} | section
    config = settings(benchmark=section)
    config["compute"] |= {"logger": logger}
    ostlight.benchmark(config)
    return Path(config["folder"]) / "run"


def test_csv_of_every_cell_and_another_logger_runs_none_again(settings, digits):
    folder = compared(settings, digits, "csv")
    (cell,) = folder.glob("trained/random*.json")
    trained, tested = json.loads(cell.read_text()), []
    for name in ("base-seed0", "random-50%-equal_steps-seed0"):
        with (folder / "logs" / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        tested.append([float(r["accuracy/all"]) for r in rows if r["accuracy/all"]])
    assert len([r for r in rows if r["loss"]]) == 3
    assert tested[1] == [pytest.approx(trained["accuracy"]["all"])]
    assert len(tested[0]) == 1
    before = (folder / "cost_log.jsonl").read_bytes()
    compared(settings, digits, "none")
    assert (folder / "cost_log.jsonl").read_bytes() == before
    assert len(list((folder / "trained").iterdir())) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_of_a_cell_holds_its_test_behind_its_training(settings, digits):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = compared(settings, digits, "tensorboard")
    events = EventAccumulator(str(folder / "logs" / "random-50%-equal_steps-seed0"))
    events.Reload()
    assert len(events.Scalars("loss")) == 3
    assert [e.step for e in events.Scalars("accuracy/all")] == [3]


def picture(folder: Path) -> None:
    (folder / "table.csv").write_text("selected,accuracy,kept,seeds\nbase,0.4,,1\nost,0.75 ± 0.01,20,2\n")
    (folder / "table.md").write_text("| selected | accuracy |\n| --- | ---: |\n| ost | 0.75 ± 0.01 |\n")
    Image.new("RGB", (4, 3), "red").save(folder / "table.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_comparison_in_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture(tmp_path)
    log_comparison(Compute(logger="tensorboard"), tmp_path)
    events = EventAccumulator(str(tmp_path / "logs" / "benchmark"))
    events.Reload()
    assert events.Tags()["images"] == ["plot/table"]
    (text,) = events.Tensors("table/text_summary")
    assert "| ost | 0.75 ± 0.01 |".encode() in text.tensor_proto.string_val[0]


def test_a_comparison_without_a_logger_is_its_files(tmp_path: Path):
    picture(tmp_path)
    log_comparison(Compute(logger="none"), tmp_path)
    log_comparison(Compute(logger="csv"), tmp_path)


def records(run: Path) -> list[Any]:
    """What an offline run of Weights & Biases wrote: LevelDB's log format, blocks of 32 KiB behind a header of 7 bytes.

    wandb no longer ships its Python reader. A record's pieces carry checksum (4 bytes), length (2) and kind: 1 whole, 2
    first, 3 middle, 4 last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = run.read_bytes()
    assert content[:4] == b":W&B"
    found, pieces, at = [], b"", 7
    while at + 7 <= len(content):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        pieces = (b"" if kind in (1, 2) else pieces) + content[at + 7 : at + 7 + length]
        if kind in (1, 4):
            found.append(Record.FromString(pieces))
        at += 7 + length
    return found


def histories(run: Path) -> list[dict[str, Any]]:
    items = (r.history.item for r in records(run) if r.WhichOneof("record_type") == "history")
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in items]


@pytest.mark.filterwarnings("ignore")
def test_a_real_comparison_with_blanks_in_wandb(tmp_path: Path, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    base = RunResult("base", "", "", 0, {"all": 0.25, "sum": 0.5}, correct="1000")
    ours = [
        RunResult(label, "20%", "equal_steps", s, {"all": 0.5, "sum": 1.0}, kept=20, correct="1100", training_flops=1e9)
        for label in ("random", "ost")
        for s in (0, 1)
    ]
    cells = [base, *ours]
    write_all(cells, summarise(cells, "random"), "random", tmp_path, "t")
    log_comparison(Compute(logger="wandb"), tmp_path)
    wandb.finish()  # the next run of this process is one of its own
    wandb.teardown()  # waits until everything is written
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert {"table", "plot"} <= {key.split("/")[0] for row in histories(run) for key in row}
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    written = json.loads(file.read_text())
    rows = [dict(zip(written["columns"], row, strict=True)) for row in written["data"]]
    assert [row["selector"] for row in rows] == ["base", "random", "ost"]
    assert [row["samples kept"] for row in rows] == [None, 20, 20]
    assert [row["sum"] for row in rows] == [50, 100, 100]
    assert [row["difference to random (95%)"] for row in rows] == [None, None, "+0.0 [+0.0, +0.0]"]
    assert [row["selection FLOPs"] for row in rows] == [None] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_holds_every_stage_and_the_comparison(settings, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    folder = trained(settings, "wandb")
    config = settings()
    config["compute"] |= {"logger": "wandb"}
    result = ostlight.evaluate(config)
    picture(folder)
    log_comparison(Compute(logger="wandb"), folder)
    wandb.finish()
    wandb.teardown()  # waits until everything is written
    found = {}
    for run in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        told = next(r.run for r in records(run) if r.WhichOneof("record_type") == "run")
        assert (told.project, told.run_group) == ("ostlight", "run")
        found[told.display_name] = histories(run)
    assert set(found) == {"run-score", "run-select", "run-train", "run-evaluate", "run-benchmark"}
    losses = [row["loss"] for row in found["run-train"] if "loss" in row]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    assert found["run-select"][0]["kept"] == 10
    assert found["run-evaluate"][0]["accuracy/all"] == pytest.approx(result.accuracy["all"])
    logged = {key for row in found["run-benchmark"] for key in row}
    assert {"table", "plot"} <= {key.split("/")[0] for key in logged}
    tables = list((folder / "wandb").glob("offline-run-*/files/media/table/*.table.json"))
    assert json.loads(tables[0].read_text())["data"] == [["base", "0.4", None, 1], ["ost", "0.75 ± 0.01", 20, 2]]
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/**/*.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_demo_logs_every_cell_of_parallel_workers_in_wandb_offline(settings, digits, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    folder = compared(settings, digits, load_config(DEMO).compute.logger, seeds=[0, 1], workers=2)
    wandb.finish()
    wandb.teardown()
    found = {}
    for run in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        told = next(r.run for r in records(run) if r.WhichOneof("record_type") == "run")
        assert (told.project, told.run_group) == ("ostlight", "run")
        found[told.display_name] = histories(run)
    cells = {f"run-random-50%-equal_steps-seed{seed}" for seed in (0, 1)}
    assert set(found) == cells | {"run-base-seed0", "run-benchmark"}
    for cell in cells:
        assert len([row for row in found[cell] if "loss" in row]) == 3
        assert len([row for row in found[cell] if "accuracy/all" in row]) == 1
