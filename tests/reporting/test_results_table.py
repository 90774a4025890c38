"""The results of a benchmark on the page: names, groups, differences and the plot."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from ostlight.benchmarking.results import pareto_optimal
from ostlight.reporting.page import write_report
from ostlight.reporting.results_table import read_results

if TYPE_CHECKING:
    from browser import Browser


@pytest.fixture
def bench(finished_run: Path, tmp_path: Path, write_results: Callable[..., None]) -> Callable[..., Path]:
    """A finished benchmark's folder, with the results asked for."""

    def write(**of: tuple[str, ...]) -> Path:
        (tmp_path / "config.yaml").write_text((finished_run / "config.yaml").read_text())
        write_results(tmp_path, **of)
        return tmp_path

    return write


def compare(folder: Path, section: str) -> None:
    """Gives the folder's configuration a benchmark section."""
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("benchmark: null\n", f"benchmark: {{{section}}}\n"))


def test_names_distinguish_protocols_and_budgets(bench: Callable[..., Path]):
    folder = bench(protocols=("equal_epochs", "equal_steps"), budgets=("20%", "20% by task"))
    names = [(row.label, row.budget, row.protocol) for row in read_results(folder)]
    assert len(names) == len(set(names))
    page = write_report(folder).read_text()
    assert "<th>protocol</th>" in page
    assert "<td><bdi>20% by task</bdi></td><td>equal steps</td>" in page


def test_what_all_rows_share_is_written_once(bench: Callable[..., Path]):
    page = write_report(bench()).read_text()
    assert "All models are trained by equal steps. The budgets are stratified by <bdi>task</bdi>." in page
    assert "<th>protocol</th>" not in page
    assert "<td><bdi>20%</bdi></td>" in page


def test_each_variant_has_rows_and_a_front_of_its_own(bench: Callable[..., Path]):
    folder = bench(variants=("small target", "large target"))
    results = read_results(folder)
    good = {s.variant: s for s in results if s.label == "good"}
    assert [100 * s.values["all"].mean for s in good.values()] == pytest.approx([70.5, 55.5])
    assert {s.values["all"].n for s in results} == {2}
    optimal = [row for row, is_optimal in zip(results, pareto_optimal(results), strict=True) if is_optimal]
    assert [(row.variant, row.label) for row in optimal] == [
        *(("small target", label) for label in ("base", "random", "good")),
        *(("large target", label) for label in ("base", "random", "dear", "good")),
    ]
    page = write_report(folder).read_text()
    assert "<th>variant</th>" in page
    assert "good 20% by task, small target" in page
    assert page.count(">Pareto-optimal</i>") == len(optimal)


def test_group_missing_from_the_first_row_has_a_column(bench: Callable[..., Path]):
    folder = bench()
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    with (folder / "results.jsonl").open("a") as file:
        for seed in (0, 1):
            colour = last | {"seed": seed, "group": "colour", "metric": "accuracy", "value": 0.5}
            file.write(json.dumps(colour) + "\n")
    page = write_report(folder).read_text()
    assert page.count('<th class="n"><bdi>colour</bdi>, %</th>') == 1
    assert page.count('<td class="n" data-v="0.5">50</td>') == 1


def test_the_plot_is_part_of_the_page(bench: Callable[..., Path]):
    folder = bench()
    plot = base64.b64encode((folder / "table.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{plot}"' in write_report(folder).read_text()
    (folder / "table.png").unlink()
    page = write_report(folder).read_text()
    assert "data:image/png" not in page
    assert "Plot: table.png does not exist" in page


def test_results_of_variants_fit_a_narrow_screen(browser: Browser, bench: Callable[..., Path]):
    browser.open(write_report(bench(variants=("small target", "large target"))), width=390)
    assert browser.problems == []
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= 390
    browser.page.fill("#results input", "small target")
    assert len(browser.texts("#results-table tbody tr")) == 5


def test_difference_to_the_baseline_is_shown(bench: Callable[..., Path]):
    folder = bench(variants=("small target", "large target"))
    found = {(s.variant, s.label): s.difference for s in read_results(folder)}
    assert found["small target", "random"] is None
    differences = [found[v, "good"] for v in ("small target", "large target")]
    assert [d and d.mean for d in differences] == pytest.approx([0.25, 0.1])
    assert "difference to <bdi>random" not in write_report(folder).read_text()
    compare(folder, "selectors: [{name: random}], budgets: [{fraction: 0.2}]")
    page = write_report(folder).read_text()
    assert '<th class="n">difference to <bdi>random</bdi></th>' in page
    assert re.search(r'<td class="n pos" data-v="0\.25">\+25\.0 <small>\[\+\d+\.\d, \+\d+\.\d\]</small>', page)


def test_benchmark_shows_rejected_records_and_cutoffs_by_stratum(finished_run: Path, bench: Callable[..., Path]):
    folder = bench()
    place = folder / "selectors" / "ost"
    shutil.copytree(finished_run, place)
    for name in ("selection.parquet", "quarantine.parquet"):
        (place / name).unlink()
    compare(folder, "selectors: [{name: random}], budgets: [{fraction: 0.2}, {fraction: 0.5, stratify_by: task}]")
    page = write_report(folder).read_text()
    assert "A dashed line is the cutoff of a budget" in page
    assert "A budget stratified by <i>task</i> has a cutoff of its own in each stratum." in page
    assert "No record was rejected" not in page
    assert "<code>corrupt_image</code>" in page


def test_folders_without_extra_columns_are_not_offered(finished_run: Path, bench: Callable[..., Path]):
    folder = bench()
    for name in ("loss", "ost", "random"):
        shutil.copytree(finished_run, folder / "selectors" / name)
    more = {"loss": ["loss"], "random": []}
    for name, columns in more.items():
        for part in (folder / "selectors" / name / "scores").glob("part-*.parquet"):
            table = pq.read_table(part)
            pq.write_table(table.select([*table.column_names[: table.column_names.index("score") + 1], *columns]), part)
    page = write_report(folder).read_text()
    assert "for <code>selectors/loss</code> run <code>ostlight report</code>" in page
