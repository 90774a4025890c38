"""One sample in the terminal."""

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
from ostlight.reporting.contents import contents
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.explain import explain
from ostlight.reporting.find import nearest_ids
from ostlight.reporting.layers import layer_of, layer_slopes
from ostlight.reporting.run import Run
from ostlight.selection.scores import REJECTED


def test_it_tells_utility_groups_cosine_curvature_rank_and_picture(made: Path, capsys: pytest.CaptureFixture[str]):
    evidence = Evidence.read(Run.open(made))
    best = int(np.argmax(evidence.score))
    explain(made, evidence.ids[best])
    out = capsys.readouterr().out
    assert f"{evidence.ids[best]}  kept, rank 1" in out
    assert "place 1 of 396 by utility" in out
    assert re.search(r"gradient points along the anchors' \(cosine \+0\.\d+\)", out)
    assert "the step's own curvature takes" in out
    assert all(name in out for name in evidence.groups)
    assert re.search(r"picture  .*pool/\d+\.jpg", out)
    assert "waves, so the answer is" in out


def test_near_duplicates_are_named(made: Path, capsys: pytest.CaptureFixture[str]):
    explain(made, "record-0000049")
    assert "near-duplicates  record-0000048" in capsys.readouterr().out


def test_a_record_set_aside_says_why(made: Path, capsys: pytest.CaptureFixture[str]):
    explain(made, "record-0000096")
    assert "set aside: empty_answer: made so" in capsys.readouterr().out


def test_an_unknown_id_is_answered_with_the_nearest(made: Path):
    with pytest.raises(DataError, match=r"no sample 'recor-0000012' .* nearest ids: .*record-0000012"):
        explain(made, "recor-0000012")
    with pytest.raises(DataError, match="record-0000120, record-0000121"):
        explain(made, "000012")


@pytest.fixture
def unnamed(made: Path, tmp_path: Path) -> Path:
    """The run as it is when the records set aside could not be read: their ids are in the pool alone."""
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (part,) = (run / "scores").glob("part-*")
    table = pq.read_table(part)
    ids = pc.if_else(pc.equal(table["state"], REJECTED), pa.scalar(None, pa.string()), table["id"])
    pq.write_table(table.set_column(table.column_names.index("id"), table.schema.field("id"), ids), part)
    return run


@pytest.mark.parametrize("said", ["#96", "record-0000096"])
def test_a_record_without_id_in_the_scores_goes_by_its_place_and_by_its_own_id(
    unnamed: Path, said: str, capsys: pytest.CaptureFixture[str]
):
    explain(unnamed, said)
    assert "#96\nset aside: empty_answer: made so" in capsys.readouterr().out


def test_places_name_scored_records_too(made: Path, capsys: pytest.CaptureFixture[str]):
    explain(made, "#49")
    assert capsys.readouterr().out.startswith("record-0000049  ")


def test_no_unrelated_ids_are_suggested(unnamed: Path):
    with pytest.raises(DataError, match=r"no record #400; the 400 of this run begin at #0$"):
        explain(unnamed, "#400")
    with pytest.raises(
        DataError, match=r"none is like it, ids are such as .*; 4 without an id go by their place, as #96$"
    ):
        explain(unnamed, "holiday-96")


def test_nothing_like_it_is_nothing():
    assert nearest_ids(["a1", "a2"], "zzzz") == []


def test_a_folder_without_scores_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        explain(tmp_path / "nowhere", "x")
    with pytest.raises(DataError, match=r"holds no config\.yaml"):
        explain(tmp_path, "x")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run over a small DigitMath pool, with groups and probes."""
    folder = tmp_path_factory.mktemp("scored")
    options = {"estimator": "second_order", "probes": 4, "step_size": 0.01}
    config: dict[str, Any] = {
        "name": "run",
        "folder": str(folder),
        "digitmath": {"pool": 24, "anchors": 14, "dev": 14, "test": 14},
        "anchors": {"group": "task"},
        "selector": {"name": "ost", "options": options},
        "proxy": {"warmup": {"fraction": 0}},
        "compute": {"accelerator": "cpu", "progress": False, "logger": "none"},
    }
    return Run.open(ostlight.select(config).folder.path)


def test_the_gains_of_the_layers_add_up_to_the_slope(scored: Run):
    evidence = Evidence.read(scored)
    for row in (0, 7):
        found = layer_slopes(scored, int(evidence.position[row]), evidence.step_size)
        assert [s.layer for s in found] == ["layers.0", "layers.1"]
        assert sum(s.gain for s in found) == pytest.approx(0.01 * evidence.columns["alignment"][row], rel=1e-4)
        assert all(abs(s.cosine) <= 1 for s in found)


def test_layers_are_printed_on_request(scored: Run, capsys: pytest.CaptureFixture[str]):
    explain(scored.path, Evidence.read(scored).ids[0], layers=True)
    out = capsys.readouterr().out
    assert "slope by layer" in out
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
            "selectors": [{"name": "ost", "options": {"estimator": "first_order"}}],
            "budgets": [{"count": 4}, {"fraction": 0.5, "stratify_by": "task"}],
            "seeds": [0],
            "workers": 1,
        },
    }
    ostlight.benchmark(config)
    return Path(config["folder"]) / "bench"


def test_of_a_benchmark_it_tells_each_budget_and_the_layers_of_its_proxy(
    compared: Path, capsys: pytest.CaptureFixture[str]
):
    (run,) = Run.open(compared).scored
    evidence = Evidence.read(run)
    best = evidence.ids[int(np.argmax(evidence.score))]
    explain(compared, best, layers=True)
    out = capsys.readouterr().out
    assert f"as scored in {run.path}" in out.replace("\n", "")
    assert "budget 4: kept, rank 1 of 4\nbudget 50% by task: kept, rank " in out
    assert "layers.1" in out
    explain(compared, evidence.ids[int(np.argmin(evidence.score))])
    assert "budget 4: dropped" in capsys.readouterr().out


def test_a_real_benchmarks_report_shows_the_samples_at_the_border_of_each_pick(compared: Path):
    shown = contents(Run.open(compared))["scored"]
    assert [pick["lined"] for pick in shown["picks"]] == [True, True]
    nearest = min((c for c in shown["cards"] if "borderline" in c.lists), key=lambda c: abs(c.story.parts[0].margin))
    assert nearest.story.place in (3, 4)
    text = ostlight.report(compared, compared / "page.html").read_text()
    assert "borderline (budget 50% by task)" in text
    assert "kept, rank 4 (budget 4)</span>" in text


def test_a_real_run_is_reported(scored: Run, tmp_path: Path):
    text = ostlight.report(scored.path, tmp_path / "page.html").read_text()
    assert "defect (truth)" in text
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
def test_the_layer_of_a_parameter(parameter: str, layer: str):
    assert layer_of(parameter) == layer
