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


def made(target: str, folder: Path, *variables: str) -> tuple[int, list[str]]:
    """The exit status, and of every call of Python the ``PYTHONPATH`` and the script."""
    log, python = folder / "log", folder / "python"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH $*" >> {log}\nexit 3\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"PYTHONPATH": "/carried"}
    command = ["make", target, f"PYTHON={python}", "OUT=results", *variables]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, log.read_text().splitlines()


PATH = ".:kernels:selectors:/carried"
OPTIONS = ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:warnings", "-p", "no:cacheprovider"]
OPTIONS += ["--confcutdir=tests/kernels", "tests/kernels"]
CHOSEN = {
    "gpu-test_bf16": "bfloat16",
    "gpu-test_fp16": "not bfloat16 and not float32",
    "gpu-test_fp32": "float32",
}
TESTS = {target: f"{PATH} -m pytest -m cuda -k {chosen} {' '.join(OPTIONS)}" for target, chosen in CHOSEN.items()}
BENCHES = {
    f"gpu-{name}": f"{PATH} benchmarks/{name}.py --device cuda --out results/{name}.jsonl {options}".strip()
    for name, options in (
        ("bench_grad_dots", "--sweep"),
        ("bench_one_step_head", ""),
        ("bench_scoring", "--shape 1b"),
    )
}
PHASES = {target: [call] for target, call in (BENCHES | TESTS).items()}
PHASES |= {"gpu-bench": [*BENCHES.values()], "gpu-test": sorted(TESTS.values())}
PHASES |= {"gpu": PHASES["gpu-bench"] + PHASES["gpu-test"]}


@needs_make
def test_the_sweep_can_be_left_out(tmp_path: Path) -> None:
    _, calls = made("gpu-bench_grad_dots", tmp_path, "SWEEP=")
    assert [call.strip() for call in calls] == [BENCHES["gpu-bench_grad_dots"].removesuffix(" --sweep")]


@needs_make
@pytest.mark.parametrize("target", PHASES)
def test_every_phase_runs_and_a_failure_tells(target: str, tmp_path: Path) -> None:
    status, calls = made(target, tmp_path)
    assert status != 0
    benches, tests = ([c for c in calls if (" -m pytest " in c) == is_test] for is_test in (False, True))
    assert calls == benches + tests, "a benchmark waits for the tests"
    assert benches + sorted(tests) == PHASES[target]


@pytest.mark.slow
def test_the_kernels_tests_need_nothing_of_the_framework() -> None:
    absent = ("omegaconf", "wandb", "lightning", "peft", "typer", "pyarrow", "transformers")
    options = ["-p", "no:xdist", "-p", "no:timeout", *OPTIONS]
    few = ["-k", "test_the_switch or test_only_padding or test_anchor_weights"]
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import pytest; sys.exit(pytest.main({options + few}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
