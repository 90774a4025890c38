"""The example package, as a stranger meets it: built, installed, listed, tested, benchmarked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_selector"


def run(arguments: list[str], place: Path, installed: Path | None = None) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if installed is not None:
        environment["PYTHONPATH"] = str(installed)
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the example was built and installed into, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    run(["pip", "install", *options, "--target", str(folder), str(source)], source)
    return folder


def test_its_selector_has_ten_lines_and_its_package_the_entry_point():
    lines = [line for line in (EXAMPLE / "my_selector.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 10
    package = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    assert package["entry-points"]["ostlight.selectors"] == {"steps": "my_selector:Steps"}


@pytest.mark.slow
def test_it_is_listed_with_the_package_it_comes_from(installed: Path, tmp_path: Path):
    listed = run(["ostlight.cli", "selectors"], tmp_path, installed)
    assert "steps  (my-selector 0.1.0)\n    Prefers answers that show their steps: the most sentences.\n" in listed


@pytest.mark.slow
def test_its_own_test_passes(installed: Path, tmp_path: Path):
    (tmp_path / "test_my_selector.py").write_bytes((EXAMPLE / "test_my_selector.py").read_bytes())
    assert "1 passed" in run(["pytest", "-q", "-p", "no:cacheprovider"], tmp_path, installed)


@pytest.mark.slow
def test_its_benchmark_runs(installed: Path, tmp_path: Path):
    small = ["digitmath.pool=60", "digitmath.anchors=7", "digitmath.dev=7", "digitmath.test=7"]
    quick = ["target.training.steps=2", "evaluation.max_new_tokens=4", "compute.progress=false"]
    run(["ostlight.cli", "benchmark", str(EXAMPLE / "benchmark.yaml"), *small, *quick], tmp_path, installed)
    lines = (tmp_path / "runs/my-selector/results.jsonl").read_text().splitlines()
    found = {(line["selector"], line["budget"]) for line in map(json.loads, lines)}
    assert {("steps", "20%"), ("random", "20%")} <= found
