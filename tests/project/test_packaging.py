"""What is shipped: one version, no selector's name in the framework, pinned tools, workflows that parse."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import ostlight
from ostlight import cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SELECTORS = set(PROJECT["entry-points"]["ostlight.selectors"])

ALSO_COLUMNS = {"loss"}
"""Selectors named like a column of the scores: the name alone says nothing."""

ALLOWED = {
    ("config/schema.py", "ost"): "the default of selector.name",
    ("config/schema.py", "random"): "the default baseline of a benchmark",
    ("reporting/utilities.py", "best_of"): "the name of a note, whichever selector writes it",
}


def selector_names_in(source: str) -> set[str]:
    """Selectors' names that stand as string literals in code (docstrings and annotations' strings aside)."""
    tree = ast.parse(source)
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in SELECTORS - ALSO_COLUMNS - {"full"}
    }


def test_a_selector_named_in_code_is_found() -> None:
    assert selector_names_in('if selector.name == "llm_judge":\n    pass') == {"llm_judge"}
    assert selector_names_in('"""Not ost."""\nLABEL = "most"') == set()


def test_the_framework_names_no_selector() -> None:
    found = {
        (str(file.relative_to(ROOT / "ostlight")), name)
        for file in (ROOT / "ostlight").rglob("*.py")
        for name in selector_names_in(file.read_text())
    }
    assert found <= set(ALLOWED), "ask the selector's class for what it needs instead"


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ostlight.__version__ == importlib.metadata.version("ostlight") == PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    monkeypatch.setattr("sys.argv", ["ostlight", "--version"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert capsys.readouterr().out == f"ostlight {PROJECT['version']}\n"


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_every_direct_dependency_is_pinned() -> None:
    pins = names_of((ROOT / "constraints.txt").read_text().splitlines())
    wanted = names_of(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        wanted |= names_of(extra)
    assert wanted - {"ostlight"} <= pins


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_the_files_of_github_parse(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    if file.parent.name == "workflows":
        assert {"name", True, "jobs"} <= set(content)  # YAML reads the key `on` as true
        for job in content["jobs"].values():
            assert job["runs-on"]
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])
