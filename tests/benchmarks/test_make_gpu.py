"""`make gpu` where every phase fails, and its tests on a machine that lacks most of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def made(target: str, folder: Path) -> tuple[int, list[str]]:
    """The exit status, and of every call of Python the ``PYTHONPATH`` and the script."""
    log, python = folder / "log", folder / "python"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH $*" >> {log}\nexit 3\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"PYTHONPATH": "/carried"}
    command = ["make", target, f"PYTHON={python}", "OUT=results"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, log.read_text().splitlines()


PATH = ".:kernels:selectors:/carried"
OPTIONS = ["-W", "ignore::pytest.PytestConfigWarning", "--confcutdir=tests/kernels", "tests/kernels"]
TESTS = f"{PATH} -m pytest -m cuda {' '.join(OPTIONS)}"
BENCHES = [
    f"{PATH} benchmarks/bench_grad_dots.py --device cuda --out results/bench_grad_dots.jsonl",
    f"{PATH} benchmarks/bench_one_step_head.py --device cuda --out results/bench_one_step_head.jsonl",
    f"{PATH} benchmarks/bench_scoring.py --device cuda --out results/bench_scoring.jsonl --shape 1b",
]


@needs_make
@pytest.mark.parametrize(
    ("target", "expected"), [("gpu", [TESTS, *BENCHES]), ("gpu-test", [TESTS]), ("gpu-bench", BENCHES)]
)
def test_every_phase_runs_and_a_failure_tells(target: str, expected: list[str], tmp_path: Path) -> None:
    status, calls = made(target, tmp_path)
    assert status != 0
    assert [call.strip() for call in calls] == expected


def test_the_kernels_tests_need_nothing_of_the_framework() -> None:
    absent = ("omegaconf", "wandb", "lightning", "peft", "typer", "pyarrow", "transformers")
    options = ["-p", "no:xdist", "-p", "no:timeout", *OPTIONS]
    few = ["-k", "test_the_switch or test_only_padding or test_anchor_weights"]
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import pytest; sys.exit(pytest.main({options + few}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
