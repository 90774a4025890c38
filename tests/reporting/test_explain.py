"""`ostlight explain`: one sample in the terminal."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.errors import DataError
from ostlight.reporting.contents import page_contents
from ostlight.reporting.explain import explain, nearest_ids
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.layers import layer_of, layer_utilities
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.selection.scores import REJECTED


def test_explain_prints_utility_groups_cosine_curvature_rank_and_image(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
):
    scores = ScoreColumns.read(FinishedRun.open(finished_run))
    best = int(np.argmax(scores.score))
    explain(finished_run, scores.ids[best])
    out = capsys.readouterr().out
    assert out.startswith(f"{scores.ids[best]}\n")
    assert "budget 20%: kept, rank 1 of 79, +" in out
    assert "rank 1 of 396 by utility" in out
    assert re.search(r"gradient points along the anchors' \(cosine \+0\.\d+\)", out)
    assert "; curvature adds" in out
    assert all(name in out for name in scores.groups)
    assert re.search(r"image  .*pool/\d+\.jpg", out)
    assert "waves, so the answer is" in out


def test_explain_prints_why_a_record_was_rejected(finished_run: Path, capsys: pytest.CaptureFixture[str]):
    explain(finished_run, "record-0000096")
    assert "rejected: empty_answer: synthetic" in capsys.readouterr().out


def test_unknown_id_is_answered_with_the_nearest_ids(finished_run: Path):
    with pytest.raises(DataError, match=r"no sample 'recor-0000012' .* nearest ids: .*record-0000012"):
        explain(finished_run, "recor-0000012")
    with pytest.raises(DataError, match="record-0000120, record-0000121"):
        explain(finished_run, "000012")


@pytest.fixture
def unnamed(finished_run: Path, tmp_path: Path) -> Path:
    """The run with rejected records that could not be read: only the pool has their ids."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (part,) = (run / "scores").glob("part-*")
    table = pq.read_table(part)
    ids = pc.if_else(pc.equal(table["state"], REJECTED), pa.scalar(None, pa.string()), table["id"])
    pq.write_table(table.set_column(table.column_names.index("id"), table.schema.field("id"), ids), part)
    return run


def test_record_without_id_in_the_scores_is_found_by_position(unnamed: Path, capsys: pytest.CaptureFixture[str]):
    explain(unnamed, "#96")
    assert "#96\nrejected: empty_answer: synthetic" in capsys.readouterr().out


def test_position_finds_a_scored_record(finished_run: Path, capsys: pytest.CaptureFixture[str]):
    explain(finished_run, "#49")
    assert capsys.readouterr().out.startswith("record-0000049")


def test_unrelated_ids_are_not_suggested(unnamed: Path):
    with pytest.raises(DataError, match=r"no record #400; the 400 of this run begin at #0$"):
        explain(unnamed, "#400")
    with pytest.raises(
        DataError, match=r"no id is similar; ids look like .*; name the 4 records without an id by position, as #96$"
    ):
        explain(unnamed, "holiday-96")


def test_nearest_ids_is_empty_when_none_is_similar():
    assert nearest_ids(["a1", "a2"], "zzzz") == []


def test_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        explain(tmp_path / "nowhere", "x")
    with pytest.raises(DataError, match=r"holds no config\.yaml"):
        explain(tmp_path, "x")


@pytest.fixture(scope="module", params=["sgd", "kfac"])
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A real run over a small DigitMath pool, with groups and probes."""
    folder = tmp_path_factory.mktemp("scored")
    options = {"estimator": "second_order", "probes": 4, "step": request.param, "step_size": 0.01}
    config: dict[str, Any] = {
        "name": "run",
        "folder": str(folder),
        "digitmath": {"pool": 24, "anchors": 14, "dev": 14, "test": 14},
        "anchors": {"group": "task"},
        "selector": {"name": "ost", "options": options},
        "proxy": {"warmup": {"fraction": 0}},
        "compute": {"accelerator": "cpu", "progress": False, "logger": "none"},
    }
    return FinishedRun.open(ostlight.select(config).folder.path)


def test_layer_utilities_add_up_to_the_first_order_utility(scored: FinishedRun):
    scores = ScoreColumns.read(scored)
    for row in (0, 7):
        found = layer_utilities(scored, int(scores.position[row]))
        assert [s.layer for s in found] == ["layers.0", "layers.1"]
        assert sum(s.utility for s in found) == pytest.approx(0.01 * scores.extra["alignment"][row], rel=1e-4)
        assert all(abs(s.cosine) <= 1 for s in found)


def test_explain_prints_layers_on_request(scored: FinishedRun, capsys: pytest.CaptureFixture[str]):
    explain(scored.path, ScoreColumns.read(scored).ids[0], layers=True)
    out = capsys.readouterr().out
    assert "first-order utility by layer" in out
    assert "layers.1" in out


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real benchmark of one selector, with a warmed-up proxy and two budgets."""
    config: dict[str, Any] = {
        "name": "bench",
        "folder": str(tmp_path_factory.mktemp("compared")),
        "digitmath": {"pool": 24, "anchors": 14, "dev": 14, "test": 14},
        "proxy": {"warmup": {"fraction": 0.5, "training": {"steps": 1}}},
        "target": {"training": {"steps": 1}},
        "compute": {"accelerator": "cpu", "progress": False, "logger": "none"},
        "benchmark": {
            "selectors": [{"name": "ost", "options": {"selection": "top", "estimator": "first_order"}}],
            "budgets": [{"count": 4}, {"fraction": 0.5, "stratify_by": "task"}],
            "seeds": [0],
            "workers": 1,
        },
    }
    ostlight.benchmark(config)
    return Path(config["folder"]) / "bench"


def test_explain_of_a_benchmark_prints_each_budget(compared: Path, capsys: pytest.CaptureFixture[str]):
    (run,) = FinishedRun.open(compared).scored_runs
    scores = ScoreColumns.read(run)
    best = scores.ids[int(np.argmax(scores.score))]
    explain(compared, best, layers=True)
    out = capsys.readouterr().out
    assert f"as scored in {run.path}" in out.replace("\n", "")
    assert re.search(
        r"^budget 4: kept, rank 1 of 4, .* from the cutoff\nbudget 50% by task: kept, rank ", out, re.MULTILINE
    )
    assert "layers.1" in out
    explain(compared, scores.ids[int(np.argmin(scores.score))])
    assert "budget 4: dropped" in capsys.readouterr().out


def test_report_of_a_benchmark_shows_samples_near_each_cutoff(compared: Path):
    shown = page_contents(FinishedRun.open(compared))["scored"]
    assert [selection["has_cutoff"] for selection in shown["selections"]] == [True, True]
    nearest = min(
        (c for c in shown["cards"] if "borderline" in c.lists), key=lambda c: abs(c.summary.outcomes[0].margin)
    )
    assert nearest.summary.place in (3, 4)
    text = ostlight.report(compared, compared / "page.html").read_text()
    assert "near the cutoff (budget 50% by task)" in text
    assert "kept, rank 4 (budget 4)</span>" in text


def test_report_of_a_real_run_changes_nothing_else_in_the_folder(scored: FinishedRun, tmp_path: Path):
    text = ostlight.report(scored.path, tmp_path / "page.html").read_text()
    assert "defect label" in text
    assert all(task in text for task in ("two_step", "parity", "difference"))
    before = {p: p.stat().st_mtime_ns for p in scored.path.rglob("*")}
    ostlight.report(scored.path, tmp_path / "again.html")
    assert {p: p.stat().st_mtime_ns for p in scored.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("model.language_model.layers.3.mlp.up_proj.weight", "layers.3"),
        ("vision.encoder.blocks.11.attn.qkv.bias", "blocks.11"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
    ],
)
def test_layer_of_a_parameter(parameter: str, layer: str):
    assert layer_of(parameter) == layer
