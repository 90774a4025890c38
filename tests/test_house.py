"""The house stands: nothing shadows, everything shipped runs, the README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ostlight
from ostlight.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_root_on_the_path_shadows_nothing():
    code = "import subprocess, asyncio, selectors, transformers; print(selectors.DefaultSelector.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Selector" in done.stdout


@pytest.mark.parametrize("root", ["selectors", "kernels"])
def test_source_roots_are_no_packages(root: str):
    assert not (ROOT / root / "__init__.py").exists()


def test_kernels_and_gradients_import_without_the_framework():
    code = (
        "import sys\n"
        "for name in ('omegaconf', 'wandb', 'lightning'): sys.modules[name] = None\n"
        "import ostlight_kernels, ostlight.influence.gradients\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_framework_knows_no_selector_by_name():
    for file in (ROOT / "ostlight").rglob("*.py"):
        assert "ostlight_selectors" not in file.read_text(), file


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_configuration_binds_and_says_how_to_run(path: Path):
    load_config(path)
    assert re.search(r"^# Run: .*(ostlight|make) ", path.read_text(), re.MULTILINE)


def test_paths_the_readme_names_exist():
    named = set(re.findall(r"`((?:ostlight|selectors|kernels|configs|docs|benchmarks|tests)/[\w./-]*)`", README))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert len(named) > 5
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_leads_to_every_page():
    linked = {str((ROOT / name).resolve()) for name in re.findall(r"\]\(([\w./-]+)\)", README)}
    assert {str(p) for p in (ROOT / "docs").rglob("*.md")} <= linked


PAGES = [ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_a_page_names_exist(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    linked = [page.parent / name for name in re.findall(r"\]\(([\w./-]+)\)", text)]
    if page.name == "CHANGELOG.md":
        linked += [ROOT / name for name in re.findall(r"\b((?:docs|examples)/[\w./]*\w)", text)]
    assert not [str(path) for path in linked if not path.exists()]


def test_every_room_is_in_the_table_of_rooms():
    rooms = {f"ostlight/{p.parent.name}" for p in (ROOT / "ostlight").glob("*/__init__.py")}
    assert rooms >= set(re.findall(r"^\| `(ostlight/\w+)`", ARCHITECTURE, re.MULTILINE))


def test_every_file_a_run_writes_is_in_the_picture_of_its_folder(settings, digits):
    config = settings(selector={"name": "ost"}, dev={"path": str(digits.dev)})
    config["compute"]["logger"] = "csv"
    folder = ostlight.select(config, "selector.options.estimator=first_order").folder.path
    ostlight.train(config)
    ostlight.evaluate(config)
    ostlight.report(folder)
    drawn = re.findall(r"^  ([\w.]+)/?", ARCHITECTURE, re.MULTILINE)
    assert sorted({p.name for p in folder.iterdir()} - set(drawn)) == []


def test_make_targets_the_readme_names_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_selector_runs_and_has_ten_lines(settings, tmp_path: Path):
    source = next(b for b in blocks("python") if "ostlight.Selector" in b)
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
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
    assert kept == sorted(kept, reverse=True)
    assert min(kept) >= sorted((len(pool[i].answer) for i in range(48)), reverse=True)[5]


def test_the_readmes_yaml_binds(tmp_path: Path):
    for block in blocks("yaml"):
        file = tmp_path / "config.yaml"
        file.write_text(block)
        load_config(file)
        assert len([line for line in block.splitlines() if line.strip()]) <= 6


def test_the_readmes_commands_exist():
    for line in re.findall(r"^ostlight (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        done = subprocess.run([sys.executable, "-m", "ostlight.cli", line, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, line
