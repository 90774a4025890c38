"""One sample in the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostlight
from ostlight.errors import DataError
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.explain import explain, nearest_ids
from ostlight.reporting.layers import layer_of, layer_slopes
from ostlight.reporting.run import Run


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
    config: dict[str, Any] = {
        "name": "run",
        "folder": str(folder),
        "digitmath": {"pool": 24, "anchors": 14, "dev": 14, "test": 14},
        "anchors": {"group": "task"},
        "selector": {"name": "ost", "options": {"estimator": "second_order", "probes": 4, "eta": 0.01}},
        "proxy": {"warmup": {"fraction": 0}},
        "compute": {"accelerator": "cpu", "progress": False, "logger": "none"},
    }
    return Run.open(ostlight.select(config).folder.path)


def test_the_gains_of_the_layers_add_up_to_the_slope(scored: Run):
    evidence = Evidence.read(scored)
    for row in (0, 7):
        found = layer_slopes(scored, int(evidence.position[row]), evidence.eta)
        assert [s.layer for s in found] == ["layers.0", "layers.1"]
        assert sum(s.gain for s in found) == pytest.approx(0.01 * evidence.columns["slope"][row], rel=1e-4)
        assert all(abs(s.cosine) <= 1 for s in found)


def test_layers_are_printed_on_request(scored: Run, capsys: pytest.CaptureFixture[str]):
    explain(scored.path, Evidence.read(scored).ids[0], layers=True)
    out = capsys.readouterr().out
    assert "slope by layer" in out
    assert "layers.1" in out


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
