"""README and docs: their commands exist, their configurations bind, their Python runs, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ostlight
from ostlight.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(DOCS.rglob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_root_on_the_path_shadows_no_standard_module() -> None:
    code = "import subprocess, asyncio, selectors, transformers; print(selectors.DefaultSelector.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Selector" in done.stdout


@pytest.mark.parametrize("root", ["selectors", "kernels"])
def test_source_roots_are_not_packages(root: str) -> None:
    assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_configuration_binds_and_its_header_says_how_to_run_it(path: Path) -> None:
    load_config(path)
    assert re.search(r"^# Run: .*(ostlight|make) ", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    # Not to pages that docs/hooks.py writes when the site is built, either: they are not there for a reader on GitHub.
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    roots = "ostlight|selectors|kernels|configs|benchmarks|tests|examples"
    named = set(re.findall(rf"`((?:{roots})/[\w./-]*\w)`", page.read_text()))
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


def test_commands_of_readme_and_docs_exist() -> None:
    shell = "\n".join(block for page in PAGES for block in blocks(page.read_text(), "sh"))
    commands = set(re.findall(r"^(?:srun )?ostlight (\w+)", shell, re.MULTILINE))
    assert {"init", "validate", "select", "train", "evaluate", "benchmark", "report"} <= commands
    shown = subprocess.run([sys.executable, "-m", "ostlight.cli", "--help"], capture_output=True, text=True, check=True)
    assert [command for command in sorted(commands) if not re.search(rf"\b{command}\b", shown.stdout)] == []


def test_make_targets_of_readme_and_contributing_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert "demo" in named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_configurations_on_a_page_bind(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for block in blocks(page.read_text(), "yaml"):
        values = yaml.safe_load(block)
        if not {"criteria", "scale"} <= values.keys():  # a judge's rubric
            file.write_text(yaml.safe_dump(values if "pool" in values else {"digitmath": {}} | values))
            load_config(file)


def test_the_readmes_selector_runs(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    source = next(block for block in blocks(README, "python") if "ostlight.Selector" in block)
    module = tmp_path / "readme_selector.py"
    module.write_text(source)
    sys.path.insert(0, str(tmp_path))
    try:
        __import__("readme_selector")
    finally:
        sys.path.remove(str(tmp_path))
    name = re.search(r'register\("(.*?)"\)', source)
    assert name is not None
    selection = ostlight.select(settings(selector={"name": name.group(1)}), "budget.count=6")
    pool = ostlight.Pool.open(settings()["pool"]["path"])
    kept = [len(pool[int(p)].answer) for p in selection.kept]
    assert kept == sorted((len(pool[i].answer) for i in range(len(pool))), reverse=True)[:6]


def test_every_file_of_a_run_is_documented(settings: Callable[..., dict[str, Any]], digits: Any) -> None:
    config = settings(selector={"name": "ost"}, dev={"path": str(digits.dev)})
    config["compute"]["logger"] = "csv"
    folder = ostlight.select(config, "selector.options.estimator=first_order").folder.path
    ostlight.train(config)
    ostlight.evaluate(config)
    ostlight.report(folder)
    documented = re.findall(r"^  ([\w.]+)/?", (DOCS / "reference" / "run-folder.md").read_text(), re.MULTILINE)
    assert sorted({p.name for p in folder.iterdir()} - set(documented)) == []


def test_every_reason_for_rejection_is_documented() -> None:
    code = "\n".join(p.read_text() for p in (ROOT / "ostlight").rglob("*.py"))
    reasons = set(re.findall(r'BadRecord\(\s*f?"([a-z_]+)"', code))
    assert len(reasons) > 10
    page = (DOCS / "reference" / "data-formats.md").read_text()
    assert sorted(reason for reason in reasons if f"`{reason}`" not in page) == []


def run_notebook(path: Path, folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are executed with nbformat and nbclient")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed with nbformat and nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # jupyter's own
@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    run_notebook(path, tmp_path)
