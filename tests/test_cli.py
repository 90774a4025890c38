"""The command line as a user meets it."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ostlight import cli
from ostlight.digitmath.model import checkpoint
from ostlight.selection import registry


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
    assert f"ost  (ostlight {version('ostlight')})" in out
    assert "Utility of one SGD step on each sample" in out
    assert "parameters: text (default blocks)" in out


def test_a_run_from_the_command_line(config: Path, monkeypatch, capsys):
    code, _, err = run("select", str(config), "budget.count=7", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "48 records read = 7 kept (7) + 41 dropped + 0 rejected" in err


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
    assert "proxy.path: no folder 'no/such/model' here" in err


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
    code, _, err = run("explain", str(folder), "pol-00003", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "the nearest ids: pool-000" in err
    code, _, err = run("report", str(tmp_path / "nowhere"), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "does not exist" in err


@pytest.fixture
def wrong(monkeypatch, capsys):
    """Runs what must be refused: the status is as given, nothing is a traceback; returns what was said."""

    def refused(*arguments: str, status: int = 1) -> str:
        code, _, err = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert code == status, err
        assert "Traceback" not in err
        return err

    return refused


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["reprot"], "'report'"),
        (["pick", "mine.yaml"], "`ostlight select`"),
        (["report", "runs/x", "--ou", "page.html"], "--out"),
        (["select", "mine.yaml", "--budget.count=3"], "budget.count=3"),
        (["select"], "CONFIG"),
    ],
)
def test_a_command_written_wrongly_gets_one_line_with_the_right_name(wrong, arguments: list[str], answer: str):
    (line,) = wrong(*arguments, status=2).splitlines()
    assert answer in line


def test_version(monkeypatch, capsys):
    assert run("--version", monkeypatch=monkeypatch, capsys=capsys)[:2] == (0, f"ostlight {version('ostlight')}\n")


def test_no_arguments_show_the_help(monkeypatch, capsys):
    code, out, _ = run(monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "Usage: ostlight" in out


@pytest.mark.parametrize(("flag", "is_silent"), [("-q", True), ("--verbose", False)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_verbosity_is_accepted_at_every_position(
    config: Path, monkeypatch, capsys, flag: str, is_silent: bool, place: int
):
    arguments = ["select", str(config)]
    arguments.insert(place, flag)
    code, _, err = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert (err == "") is is_silent


def test_a_fault_in_the_options_of_a_selector_names_where_it_stands(config: Path, wrong):
    override = "selector={name: loss, options: {preferr: low}}"
    assert f"override {override}: unknown key 'selector.options.preferr'" in wrong("select", str(config), override)
    raw = yaml.safe_load(config.read_text()) | {"selector": {"name": "loss", "options": {"preferr": "low"}}}
    config.write_text(yaml.safe_dump(raw))
    assert f"{config}: unknown key 'selector.options.preferr'" in wrong("select", str(config))


def test_without_a_target_nothing_is_trained_next(config: Path, tmp_path: Path, monkeypatch, capsys):
    arguments = ["select", str(config), "target.path=null", "budget.count=7"]
    _, _, err = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert err.splitlines()[-1] == f"next: ostlight report {tmp_path / 'runs' / 'run'}"


def test_a_run_logs_to_its_folder_and_names_the_next_command(config: Path, tmp_path: Path, monkeypatch, capsys):
    _, _, err = run("select", str(config), "budget.count=7", monkeypatch=monkeypatch, capsys=capsys)
    assert err.splitlines()[-1] == f"next: ostlight train {config} budget.count=7"
    log = tmp_path / "runs" / "run" / "logs" / "ostlight.log"
    first = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO|WARNING) ostlight", line) for line in first)
    run("select", str(config), "seed=9", monkeypatch=monkeypatch, capsys=capsys)
    appended = log.read_text().splitlines()
    assert appended[: len(first)] == first
    assert any(" ERROR " in line and "RunChangedError" in line for line in appended[len(first) :])


def test_init_then_validate_then_select(digits, proxy, tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "mine.yaml"
    code, _, err = run("init", str(digits.pool), "--out", str(file), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert f"ostlight validate {file}" in err
    code, out, _ = run("validate", str(file), f"folder={tmp_path}", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "problem: proxy.path is missing" in out
    settings = [f"folder={tmp_path}", f"proxy.path={checkpoint('proxy')}"]
    code, out, _ = run("validate", str(file), *settings, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    (problem,) = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert "anchors.path" in problem
    settings.append(f"anchors.path={digits.anchors}")
    code, out, _ = run("validate", str(file), *settings, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1].startswith(f"next: ostlight select {file} ")


def processor_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_and_help_are_fast():
    # Measured 0.02 and 0.2 s; importing torch alone takes above 1 s.
    assert processor_seconds(sys.executable, "-c", "import ostlight") < 0.5
    assert processor_seconds(sys.executable, "-m", "ostlight.cli", "--help") < 1.0


@pytest.mark.parametrize("verb", ["select", "train", "evaluate", "benchmark", "validate"])
def test_a_typo_is_answered_before_torch_is_imported(config: Path, verb: str):
    script = (
        "import sys, ostlight\n"
        f"try: ostlight.{verb}({str(config)!r}, 'budgte.count=3')\n"
        "except ostlight.errors.ConfigError: pass\n"
        "assert not {'torch', 'lightning', 'transformers', 'pyarrow'} & {*sys.modules}"
    )
    assert processor_seconds(sys.executable, "-c", script) < 1.0


def test_importing_ostlight_changes_nothing_global():
    script = (
        "import logging, os, warnings; before = dict(os.environ), list(warnings.filters)\n"
        "import ostlight, ostlight.cli, ostlight.logs\n"
        "assert (dict(os.environ), list(warnings.filters)) == before\n"
        "assert not logging.getLogger('ostlight').handlers"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("budget.fraction", "override budget.fraction: an override is written key=value, as budget.fraction=0.5"),
        ("budget.fraction=", "budget.fraction has no value; write budget.fraction=null to unset it"),
        ("budget.fraction=abc", "budget.fraction must be a number, above 0 and at most 1, or null; got 'abc'"),
        ("budget.fraction=[1", "override budget.fraction=[1: the value is not YAML"),
        ("selector.options.lenth=3", "unknown key 'selector.options.lenth'; valid here: none"),
        ("selector.selecton=top", "for an option of the selector write selector.options.selecton; valid here: name"),
        ("anchors.path=nowhere.jsonl", "anchors.path: nowhere.jsonl does not exist"),
    ],
)
def test_a_malformed_override_is_named(config: Path, wrong, override: str, told: str):
    assert told in wrong("select", str(config), override)


def test_a_missing_file_is_answered_with_the_nearest(config: Path, tmp_path: Path, wrong):
    (tmp_path / "trusted.jsonl").touch()
    near = f"did you mean {tmp_path / 'trusted.jsonl'}?"
    assert near in wrong("select", str(config), f"anchors.path={tmp_path / 'trustd.jsonl'}")


def test_an_unknown_option_of_a_selector_is_answered_with_the_nearest(config: Path, wrong):
    err = wrong("select", str(config), "selector.name=length", "selector.options.prefr=low")
    assert "unknown key 'selector.options.prefr'; did you mean 'prefer'? valid here: prefer" in err


def test_a_configuration_that_is_none(tmp_path: Path, wrong):
    assert "no such file; the folder holds: no YAML file" in wrong("select", str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("pool: {path: [\n")
    assert "mine.yaml: not YAML: while parsing a flow" in wrong("select", str(tmp_path / "mine.yaml"))
    assert "a folder, not a file; it holds: mine.yaml" in wrong("select", str(tmp_path))


def test_a_run_folder_that_cannot_be_made(config: Path, tmp_path: Path, wrong):
    (tmp_path / "taken").write_text("a file")
    err = wrong("select", str(config), f"folder={tmp_path / 'taken'}")
    assert f"folder: cannot make {tmp_path / 'taken' / 'run'}: Not a directory; name another" in err


@pytest.mark.parametrize("command", [("report",), ("explain", "some-id"), ("sources",)], ids=lambda c: c[0])
def test_a_run_folder_that_is_none(tmp_path: Path, wrong, command: tuple[str, ...]):
    verb, *rest = command
    (tmp_path / "file").write_text("")
    mend = "; name a folder that `ostlight select` or `ostlight benchmark` wrote"
    assert f"{tmp_path / 'nowhere'} does not exist{mend}" in wrong(verb, str(tmp_path / "nowhere"), *rest)
    assert f"{tmp_path} is no run folder: it holds no config.yaml{mend}" in wrong(verb, str(tmp_path), *rest)
    assert f"{tmp_path / 'file'} is a file{mend}" in wrong(verb, str(tmp_path / "file"), *rest)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch):
    """Installs packages by their dist-info alone: name of a selector to the source of the module it is in."""

    def install(**modules: str) -> None:
        for name, source in modules.items():
            (tmp_path / f"plugin_{name}.py").write_text(source)
            info = tmp_path / f"plugin_{name}-1.2.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.2\n")
            (info / "entry_points.txt").write_text(f"[ostlight.selectors]\n{name} = plugin_{name}:It\n")
        registry._entry_points.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    registry._entry_points.cache_clear()


def test_a_plugin_that_does_not_import_takes_no_other_along(config: Path, plugins, wrong, monkeypatch, capsys):
    plugins(needy="import no_such_package", rude="raise SystemExit(3)", bare="import ostlight\nclass It: pass\n")
    code, out, _ = run("selectors", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert f"random  (ostlight {version('ostlight')})" in out
    assert "rude  (plugin-rude 1.2)\n    cannot be used: importing plugin_rude:It failed with SystemExit: 3" in out
    err = wrong("select", str(config), "selector.name=needy")
    assert "selector 'needy' from plugin-needy 1.2 cannot be used: importing plugin_needy:It failed with Module" in err
    assert "No module named 'no_such_package'" in err
    assert "plugin_bare:It is no subclass of ostlight.Selector" in wrong("select", str(config), "selector.name=bare")
