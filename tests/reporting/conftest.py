"""Runs to report on, and a browser to look at the page with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "benchmarks")]

from browser import Browser, find_chromium  # noqa: E402 - it lies in this folder, which is on the path from here on


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 records with everything a selection leaves; nobody writes to it."""
    from _report_run import write_run

    return write_run(tmp_path_factory.mktemp("made"), records=400, probes=4)


@pytest.fixture(scope="session")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ostlight.reporting.page import write_report

    return write_report(made, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here to open the page in (Debian's package: chromium)")
    opened = Browser(program)
    yield opened
    opened.close()


@pytest.fixture
def results() -> Callable[[Path], None]:
    """Writes the results of a small benchmark into a folder: three selectors, two budgets, two seeds."""
    import json

    def write(folder: Path) -> None:
        lines = []

        def add(selector: str, budget: str, accuracy: float, selection: float, training: float) -> None:
            protocol = "" if selector == "base" else "fixed_compute"
            for seed in (0, 1):
                key = {"selector": selector, "budget": budget, "protocol": protocol, "seed": seed}
                lines.extend(
                    key | {"group": g, "metric": "accuracy", "value": accuracy + 0.01 * seed} for g in ("all", "sum")
                )
                costs = {"selection_s": selection, "training_s": training, "kept": 20, "defect_share": None}
                costs |= {"selection_flops": 1e9 * selection, "training_flops": 1e9 * training}
                lines.extend(key | {"group": "all", "metric": m, "value": v} for m, v in costs.items())

        add("base", "", 0.3, 0, 0)
        add("full", "", 0.5, 0, 100)
        add("random", "20% within task", 0.45, 0, 20)
        add("dear", "20% within task", 0.6, 400, 20)
        add("good", "20% within task", 0.7, 30, 20)
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write
