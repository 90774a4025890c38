"""How the lines of a benchmark stand: what names them, and what they are measured against."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from browser import Browser

from ostlight.reporting.page import write_report
from ostlight.reporting.standing import read_standings


@pytest.fixture
def bench(made: Path, tmp_path: Path, results: Callable[..., None]) -> Callable[..., Path]:
    """A finished benchmark's folder, with the results asked for."""

    def write(**of: tuple[str, ...]) -> Path:
        (tmp_path / "config.yaml").write_text((made / "config.yaml").read_text())
        results(tmp_path, **of)
        return tmp_path

    return write


def compare(folder: Path, section: str) -> None:
    """Gives the folder's configuration a benchmark section."""
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("benchmark: null\n", f"benchmark: {{{section}}}\n"))


def test_two_protocols_and_mixed_budgets_are_told_apart(bench: Callable[..., Path]):
    folder = bench(protocols=("equal_epochs", "equal_steps"), budgets=("20%", "20% by task"))
    names = [s.name for s in read_standings(folder)]
    assert len(names) == len(set(names))
    assert {"base", "full equal steps", "good 20% equal epochs", "good 20% by task equal epochs"} <= set(names)
    page = write_report(folder).read_text()
    assert "<th>protocol</th>" in page
    assert "<td><bdi>20% by task</bdi></td><td>equal steps</td>" in page


def test_what_all_lines_share_is_said_once(bench: Callable[..., Path]):
    page = write_report(bench()).read_text()
    assert "All are trained by equal steps. The budgets are spent within each <bdi>task</bdi>." in page
    assert "<th>protocol</th>" not in page
    assert "good 20%</bdi>" in page


def test_each_variant_has_lines_and_a_front_of_its_own(bench: Callable[..., Path]):
    folder = bench(variants=("small target", "large target"))
    standings = read_standings(folder)
    good = {s.variant: s for s in standings if s.label == "good"}
    assert [100 * s.accuracy["all"].mean for s in good.values()] == pytest.approx([70.5, 55.5])
    assert {s.accuracy["all"].n for s in standings} == {2}
    fronts = {v: {s.label for s in standings if s.on_front["flops"] and s.variant == v} for v in good}
    assert fronts == {"small target": {"base", "random", "good"}, "large target": {"base", "random", "good", "dear"}}
    page = write_report(folder).read_text()
    assert "<th>variant</th>" in page
    assert "good 20%, small target" in page


def test_a_group_that_the_first_line_lacks_has_a_column(bench: Callable[..., Path]):
    folder = bench()
    *_, last = (folder / "results.jsonl").read_text().splitlines()
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(json.loads(last) | {"group": "colour", "metric": "accuracy", "value": 0.5}) + "\n")
    page = write_report(folder).read_text()
    assert page.count('<th class="n"><bdi>colour</bdi></th>') == 1
    assert page.count('<td class="n" data-v="0.5">50</td>') == 1


def test_the_plots_are_shown_variant_by_variant(browser: Browser, bench: Callable[..., Path]):
    browser.open(write_report(bench(variants=("small target", "large target"))), width=390)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    shown = "[...document.querySelectorAll('#pareto .narrow .point.front title')]" + (
        ".filter((t) => t.closest('svg').checkVisibility()).map((t) => t.textContent.split(':')[0])"
    )
    assert browser.run(shown) == ["random 20%", "good 20%"]
    browser.click('#pareto [data-show="large target"]')
    assert browser.run(shown) == ["random 20%", "dear 20%", "good 20%"]
    browser.click('#pareto [data-show="device_s"]')
    assert browser.run(shown) == ["random 20%", "dear 20%", "good 20%"]
    browser.type("#standing input", "small target")
    assert len(browser.texts("#standing-table tbody tr")) == 5


def test_the_difference_to_the_baseline_stands_beside_the_accuracy(bench: Callable[..., Path]):
    folder = bench(variants=("small target", "large target"))
    found = {(s.variant, s.label): s.difference for s in read_standings(folder)}
    assert found["small target", "random"] is None
    assert [found[v, "good"]["mean"] for v in ("small target", "large target")] == pytest.approx([0.25, 0.1])
    assert "to <bdi>random" not in write_report(folder).read_text()
    compare(folder, "selectors: [{name: random}], budgets: [{fraction: 0.2}]")
    page = write_report(folder).read_text()
    assert '<th class="n">to <bdi>random</bdi></th>' in page
    assert re.search(r'<td class="n pos" data-v="0\.25">\+25\.0 <small>\[\+\d+\.\d, \+\d+\.\d\]</small>', page)


def test_a_benchmark_tells_what_its_scores_set_aside_and_that_a_budget_spent_by_tag_has_lines_of_its_own(
    made: Path, bench: Callable[..., Path]
):
    folder = bench()
    place = folder / "selectors" / "ost"
    shutil.copytree(made, place)
    for name in ("selection.parquet", "quarantine.parquet"):
        (place / name).unlink()
    compare(folder, "selectors: [{name: random}], budgets: [{fraction: 0.2}, {fraction: 0.5, stratify_by: task}]")
    page = write_report(folder).read_text()
    assert "A dashed line is where a ranking of the whole pool would draw a budget's." in page
    assert "A budget spent within each <i>task</i> has a line of its own in each." in page
    assert "No record was set aside" not in page
    assert "<code>corrupt_image</code>" in page


def test_scores_without_more_than_a_number_a_sample_are_not_offered(made: Path, bench: Callable[..., Path]):
    folder = bench()
    for name in ("loss", "ost", "random"):
        shutil.copytree(made, folder / "selectors" / name)
    more = {"loss": ["loss"], "random": []}
    for name, columns in more.items():
        for part in (folder / "selectors" / name / "scores").glob("part-*.parquet"):
            table = pq.read_table(part)
            pq.write_table(table.select([*table.column_names[: table.column_names.index("score") + 1], *columns]), part)
    page = write_report(folder).read_text()
    assert "for <code>selectors/loss</code> run <code>ostlight report</code>" in page
