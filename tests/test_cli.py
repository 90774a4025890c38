"""The command line as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ostlight import cli


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """As the console script runs it: exit status, output, errors."""
    monkeypatch.setattr("sys.argv", ["ostlight", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    else:
        code = 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def config(settings, tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(settings()))
    return file


def test_selectors_lists_name_line_options_and_source(monkeypatch, capsys):
    code, out, _ = run("selectors", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "ost  (ostlight 0.1.0)" in out
    assert "Utility of one SGD step on each sample" in out
    assert "scope: str = 'blocks'" in out


def test_a_run_from_the_command_line(config: Path, monkeypatch, capsys):
    code, out, _ = run("select", str(config), "budget.count=7", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "48 records read = 7 kept (7) + 41 dropped + 0 set aside" in out


def test_a_typo_is_answered_without_a_traceback(config: Path, monkeypatch, capsys):
    code, _, err = run("select", str(config), "budget.fracton=0.5", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "unknown key 'budget.fracton'; did you mean 'fraction'?" in err
    assert "Traceback" not in err


def test_an_unknown_selector_is_answered_with_the_nearest(config: Path, monkeypatch, capsys):
    code, _, err = run("select", str(config), "selector.name=rando", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "did you mean 'random'?" in err


def test_a_missing_pool_is_answered_with_its_path(config: Path, monkeypatch, capsys):
    code, _, err = run("select", str(config), "pool.path=nowhere.jsonl", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "nowhere.jsonl" in err
    assert "Traceback" not in err


def test_a_missing_model_is_answered_with_its_path(config: Path, monkeypatch, capsys):
    arguments = ["select", str(config), "selector.name=ost", "proxy.path=no/such/model"]
    code, _, err = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "proxy.path: cannot load" in err
    assert "no/such/model" in err


def test_an_unknown_verb_names_the_verbs():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for verb in ("select", "train", "evaluate", "benchmark", "report", "explain", "selectors"):
        assert verb in result.output


def test_an_accelerator_that_is_not_there_is_answered(config: Path, monkeypatch, capsys):
    arguments = ["select", str(config), "compute.accelerator=gpuu"]
    code, _, err = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "compute: Lightning refuses these settings: You selected an invalid accelerator name" in err


def test_a_run_is_reported_and_a_sample_explained(config: Path, tmp_path: Path, monkeypatch, capsys):
    run("select", str(config), monkeypatch=monkeypatch, capsys=capsys)
    folder = tmp_path / "runs" / "run"
    code, out, _ = run("report", str(folder), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert str(folder / "report.html") in out.replace("\n", "")
    code, out, _ = run("explain", str(folder), "pool-00003", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "of 48 by score" in out
    code, _, err = run("explain", str(folder), "pool-99999", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "the nearest ids: pool-000" in err
    code, _, err = run("report", str(tmp_path / "nowhere"), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "does not exist" in err
