"""The page in a browser: it opens without errors or requests, and its filters and sorting work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ostlight.reporting.page import write_report

if TYPE_CHECKING:
    from browser import Browser


def numbers(texts: list[str]) -> list[float]:
    return [float(t.split()[0].replace("\N{MINUS SIGN}", "-").replace(",", "")) for t in texts]


@pytest.fixture
def opened(browser: Browser, report: Path) -> Browser:
    browser.open(report)
    return browser


def test_page_opens_without_errors_or_network_requests(opened: Browser, report: Path):
    assert opened.problems == []
    assert opened.requests == [report.resolve().as_uri()]
    assert opened.page.evaluate("document.title") == "made · ostlight"


def test_long_path_does_not_widen_a_narrow_page(browser: Browser, finished_run: Path, tmp_path: Path):
    folder = tmp_path / ("a" * 90)
    shutil.copytree(finished_run, folder)
    browser.open(write_report(folder), width=360)
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_the_screen_in_light_and_dark(browser: Browser, report: Path, width: int, dark: bool):
    browser.open(report, width=width, dark=dark)
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = browser.page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = browser.page.evaluate("getComputedStyle(document.body).color")
    light = [sum(int(x) for x in colour[4:-1].split(",")) for colour in (paper, ink)]
    assert (light[0] < light[1]) == dark
    smallest = browser.page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].filter((t) => t.checkVisibility())"
        ".map((t) => t.getBoundingClientRect().height))"
    )
    assert smallest > 9


def test_theme_button_switches_light_and_dark(opened: Browser):
    before = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.page.click("#theme")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    opened.page.click("#theme")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_sample_lists_are_sorted(opened: Browser):
    best = numbers(opened.texts(".card .u"))
    assert best == sorted(best, reverse=True)
    opened.page.click('[data-list="toxic"]')
    worst = numbers(opened.texts(".card .u"))
    assert worst == sorted(worst)
    assert max(worst) < 0 < min(best)
    opened.page.click('[data-list="borderline"]')
    margins = opened.page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.margin)"
    )
    assert margins == sorted(margins)


def test_sample_cards_can_be_searched_filtered_and_sorted(opened: Browser):
    assert len(opened.texts(".card")) == 12
    opened.page.click("#more-cards")
    assert len(opened.texts(".card")) == 36
    known = opened.texts(".card .id")[20]
    opened.page.fill("#card-search", known)
    assert opened.texts(".card .id") == [known]
    opened.page.fill("#card-search", "")
    opened.page.select_option("#card-sort", "-cosine")
    cosines = opened.page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.cosine)"
    )
    assert cosines == sorted(cosines, reverse=True)
    option = '[...document.querySelector("#card-tag").options].find((o) => o.text === "source: textbook").value'
    opened.page.select_option("#card-tag", opened.page.evaluate(option))
    shown = opened.texts(".card .tags")
    assert shown
    assert all("textbook" in text for text in shown)
    opened.page.fill("#card-search", "no such sample")
    assert opened.texts(".card") == []
    assert opened.texts("#no-card") == ["No sample of this list matches."]


def test_clicking_a_heading_sorts_the_table(opened: Browser):
    opened.page.click("#matrix [data-tag='1'] th:nth-child(5)")
    values = numbers(opened.texts("#matrix [data-tag='1'] td:nth-child(5)"))
    assert values == sorted(values, reverse=True)
    opened.page.click("#matrix [data-tag='1'] th:nth-child(5)")
    assert numbers(opened.texts("#matrix [data-tag='1'] td:nth-child(5)")) == values[::-1]


def test_benchmark_shows_its_results_table_and_plot(
    browser: Browser, finished_run: Path, write_results: Any, tmp_path: Path
):
    folder = tmp_path / "bench"
    (folder / "selectors").mkdir(parents=True)
    (folder / "selectors" / "ost").symlink_to(finished_run, target_is_directory=True)
    (folder / "config.yaml").write_text((finished_run / "config.yaml").read_text())
    write_results(folder)
    browser.open(write_report(folder))
    assert browser.problems == []
    assert [t.split()[0] for t in browser.texts("#results-table td:first-child")] == [
        "base",
        "full",
        "random",
        "dear",
        "good",
    ]
    browser.page.click("#results-table th:nth-child(3)")
    assert browser.texts("#results-table td:first-child")[0].startswith("good")
    browser.page.fill("#results input", "rand")
    assert len(browser.texts("#results-table tbody tr")) == 1
    assert len(browser.texts("#cards .card")) == 12
    assert browser.page.evaluate("document.querySelector('#results .plot').naturalWidth") > 600
