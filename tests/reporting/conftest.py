"""Runs to report on, and a browser to look at the page with."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "benchmarks")]

if TYPE_CHECKING:
    from browser import Browser


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 records with every file that a selection writes; tests only read it."""
    from _report_run import write_run

    return write_run(tmp_path_factory.mktemp("finished_run"), records=400, probes=4)


@pytest.fixture(scope="session")
def report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ``finished_run``."""
    from ostlight.reporting.page import write_report

    return write_report(finished_run, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. It ends with the module: while it runs, no other event loop can."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    from browser import find_chromium, launch

    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    with launch(program) as browser:
        yield browser


@pytest.fixture
def write_results() -> Callable[..., None]:
    """Writes the files of a small benchmark into a folder: three selectors, one of which falls behind from variant to
    variant, two seeds."""
    from ostlight.benchmarking.files import write_all
    from ostlight.benchmarking.results import RunResult, summarise

    def write(
        folder: Path,
        variants: Sequence[str] = ("",),
        protocols: Sequence[str] = ("equal_steps",),
        budgets: Sequence[str] = ("20% by task",),
    ) -> None:
        runs = []
        for place, variant in enumerate(variants):
            trained = [("full", "", 50, 0, 100)]
            for budget in budgets:
                trained += [("random", budget, 45, 0, 20), ("dear", budget, 60, 400, 20)]
                trained += [("good", budget, 70 - 15 * place, 30, 20)]
            rows = [("base", "", 30, 0, 0, ""), *((*row, protocol) for protocol in protocols for row in trained)]
            for (selector, budget, right, selection, training, protocol), seed in itertools.product(rows, (0, 1)):
                share, items = (right + seed) / 100, [1.0] * (right + seed) + [0.0] * (100 - right - seed)
                costs = {"selection_s": selection, "training_s": training, "kept": 20, "variant": variant}
                costs |= {"selection_flops": 1e9 * selection, "training_flops": 1e9 * training, "items": items}
                runs.append(RunResult(selector, budget, protocol, seed, {"all": share, "sum": share}, **costs))
        write_all(runs, summarise(runs, "random"), "random", folder, "made")

    return write
