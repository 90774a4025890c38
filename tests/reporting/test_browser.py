"""The page as a reader meets it: it opens, fetches nothing, says no error, and its filters and orders work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from ostlight.reporting.page import write_report


def numbers(texts: list[str]) -> list[float]:
    return [float(t.split()[0].replace("\N{MINUS SIGN}", "-").replace(",", "")) for t in texts]


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    return browser


def test_it_opens_without_an_error_and_asks_the_network_for_nothing(opened: Browser, page: Path):
    assert opened.problems == []
    assert opened.requests == [page.resolve().as_uri()]
    assert opened.run("document.title") == "made · ostlight"


def test_a_long_path_does_not_widen_a_telephones_page(browser: Browser, made: Path, tmp_path: Path):
    folder = tmp_path / ("a" * 90)
    shutil.copytree(made, folder)
    browser.open(write_report(folder), width=360)
    assert browser.run("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_in_light_and_dark(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    ink = browser.run("getComputedStyle(document.body).color")
    light = [sum(int(x) for x in colour[4:-1].split(",")) for colour in (paper, ink)]
    assert (light[0] < light[1]) == dark
    assert browser.run("document.querySelector('svg.narrow').checkVisibility()") == (width < 640)
    smallest = browser.run(
        "Math.min(...[...document.querySelectorAll('svg text')].filter((t) => t.checkVisibility())"
        ".map((t) => t.getBoundingClientRect().height))"
    )
    assert smallest > 9


def test_the_button_turns_light_into_dark(opened: Browser):
    before = opened.run("getComputedStyle(document.body).backgroundColor")
    opened.click("#theme")
    assert opened.run("getComputedStyle(document.body).backgroundColor") != before
    opened.click("#theme")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == before


def test_lists_of_samples_are_shown_in_their_order(opened: Browser):
    best = numbers(opened.texts(".card .u"))
    assert best == sorted(best, reverse=True)
    opened.click('[data-list="toxic"]')
    worst = numbers(opened.texts(".card .u"))
    assert worst == sorted(worst)
    assert max(worst) < 0 < min(best)
    opened.click('[data-list="borderline"]')
    margins = opened.run(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.margin)"
    )
    assert margins == sorted(margins)


def test_samples_are_searched_filtered_and_sorted(opened: Browser):
    assert len(opened.texts(".card")) == 12
    opened.click("#more-cards")
    assert len(opened.texts(".card")) == 36
    known = opened.texts(".card .id")[20]
    opened.type("#card-search", known)
    assert opened.texts(".card .id") == [known]
    opened.type("#card-search", "")
    opened.type("#card-sort", "-cosine")
    cosines = opened.run(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.cosine)"
    )
    assert cosines == sorted(cosines, reverse=True)
    option = '[...document.querySelector("#card-tag").options].find((o) => o.text === "source: textbook").value'
    opened.type("#card-tag", opened.run(option))
    shown = opened.texts(".card .tags")
    assert shown
    assert all("textbook" in text for text in shown)
    opened.type("#card-search", "no such sample")
    assert opened.texts(".card") == []
    assert opened.texts("#no-card") == ["No sample of this list matches."]


def test_every_sample_is_in_the_table_which_sorts_filters_and_turns_pages(opened: Browser):
    assert opened.texts("#row-count") == ["396 rows"]
    column = "#rows tbody td:nth-child({})".format
    assert numbers(opened.texts(column(1))) == list(range(1, 26))
    opened.click("#on")
    assert numbers(opened.texts(column(1))) == list(range(26, 51))
    opened.click("#rows th:nth-child(3)")
    up = opened.run("document.querySelector('#rows th:nth-child(3)').getAttribute('aria-sort')")
    values = numbers(opened.texts(column(3)))
    assert values == sorted(values, reverse=up == "descending")
    opened.click("#rows th:nth-child(3)")
    again = numbers(opened.texts(column(3)))
    assert again == sorted(again, reverse=up != "descending")
    opened.type("#row-state", "kept")
    assert opened.texts("#row-count") == ["79 rows"]
    opened.type("#row-state", "")
    opened.type("#row-search", "d-000012")
    assert sorted(opened.texts(column(2))) == [f"record-000012{k}" for k in range(10)]


def test_tables_sort_by_a_click_on_a_heading(opened: Browser):
    opened.click("#matrix [data-tag='1'] th:nth-child(5)")
    values = numbers(opened.texts("#matrix [data-tag='1'] td:nth-child(5)"))
    assert values == sorted(values, reverse=True)
    opened.click("#matrix [data-tag='1'] th:nth-child(5)")
    assert numbers(opened.texts("#matrix [data-tag='1'] td:nth-child(5)")) == values[::-1]


def test_a_benchmark_shows_its_table_and_plot(browser: Browser, made: Path, results: Any, tmp_path: Path):
    folder = tmp_path / "bench"
    (folder / "selectors").mkdir(parents=True)
    (folder / "selectors" / "ost").symlink_to(made, target_is_directory=True)
    (folder / "config.yaml").write_text((made / "config.yaml").read_text())
    results(folder)
    browser.open(write_report(folder))
    assert browser.problems == []
    assert [t.split()[0] for t in browser.texts("#standing-table td:first-child")] == [
        "base",
        "full",
        "random",
        "dear",
        "good",
    ]
    browser.click("#standing-table th:nth-child(3)")
    assert browser.texts("#standing-table td:first-child")[0].startswith("good")
    browser.type("#standing input", "rand")
    assert len(browser.texts("#standing-table tbody tr")) == 1
    assert len(browser.texts("#cards .card")) == 12
    visible = "[...document.querySelectorAll('#pareto figure')].filter((f) => !f.hidden).map((f) => f.dataset.cost)"
    assert browser.run(visible) == ["flops"]
    browser.click('#pareto [data-show="device_s"]')
    assert browser.run(visible) == ["device_s"]
