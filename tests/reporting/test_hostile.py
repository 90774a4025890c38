"""Hostile data are shown, never executed, and the page stays small."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _report_run import write_run
from PIL import Image as PILImage

from ostlight.reporting.explain import explain
from ostlight.reporting.page import write_report

if TYPE_CHECKING:
    from browser import Browser

SCRIPT = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
RIGHT_TO_LEFT = "مرحبا \u202egnirts desrever\u202c שלום"
EMOJI = "👩🏽‍🔬🎉"
MANY = "long answer " * 90_000
LONG = MANY[:100_000]
QUOTES = "\"' onload='document.title=1' {{ 7 * 7 }} {% raw %} <!-- ]]> &lt;"
HOSTILE = [SCRIPT, RIGHT_TO_LEFT, EMOJI, MANY, QUOTES]


def corrupt(place: int, record: dict[str, Any]) -> dict[str, Any]:
    text = HOSTILE[place % len(HOSTILE)]
    record["conversations"][0]["value"] = f"<image>\n{text[:5000]}"
    record["conversations"][1]["value"] = text
    record["image"] = "huge.png" if place % 2 else "0.jpg"
    return record | {"source": HOSTILE[place % 3] + "x" * (place % 3), "no<b>te": QUOTES if place % 4 else SCRIPT}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pool holds scripts, both directions of writing, emoji, a megabyte of text, long tags and 40
    megapixels."""
    folder = tmp_path_factory.mktemp("hostile")
    run = write_run(folder, records=20, probes=4, change=corrupt)
    noise = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    PILImage.fromarray(noise).resize((8000, 5000)).save(folder / "pool" / "huge.png", compress_level=1)
    table_of_tags(run)
    (run / "selector" / "notes.json").write_text(
        json.dumps({"groups": [SCRIPT, RIGHT_TO_LEFT, EMOJI, QUOTES, "a", "b", "c"], SCRIPT: SCRIPT, "step_size": 0.02})
    )
    return run


def table_of_tags(run: Path) -> None:
    """The tags of the score table, as scoring would have read them from the corrupt records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = next((run / "scores").glob("part-*"))
    table = pq.read_table(part)
    tags = [
        [("source", HOSTILE[k % 3] + "x" * (k % 3)), ("no<b>te", QUOTES if k % 4 else SCRIPT), (LONG, f"{LONG}{k % 2}")]
        for k in range(20)
    ]
    place = table.column_names.index("tags")
    pq.write_table(table.set_column(place, "tags", pa.array(tags, table.schema.field("tags").type)), part)


@pytest.fixture(scope="module")
def page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(hostile, tmp_path_factory.mktemp("hostile_page") / "page.html")


class Scripts(HTMLParser):
    """Every tag of the page that could run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if tag == "script" or any(name.startswith("on") for name in names):
            self.found.append(f"{tag} {' '.join(names)}".strip())


def test_data_add_no_script_and_no_event_handler(page: Path):
    parser = Scripts()
    parser.feed(page.read_text())
    assert parser.found == ["script"]
    assert page.stat().st_size < 2_000_000


def test_browser_shows_hostile_data_and_runs_none_of_it(page: Path, browser: Browser):
    browser.open(page, width=390)
    assert browser.problems == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.page.evaluate("document.title") == "made · ostlight"
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= 390
    text = browser.page.evaluate("document.querySelector('#cards').textContent")
    assert SCRIPT in text
    assert EMOJI in text
    assert "more characters)" in text
    assert "{{ 7 * 7 }}" in text
    sizes = browser.page.evaluate(
        "[...document.querySelectorAll('#cards img')].map((i) => i.alt.match(/(\\d+) × (\\d+)/)[0])"
    )
    assert "8000 × 5000" in sizes
    widths = browser.page.evaluate("[...document.querySelectorAll('#cards img')].map((i) => i.naturalWidth)")
    assert 0 < min(widths) <= max(widths) <= 360


def test_direction_marks_are_isolated(page: Path, browser: Browser):
    browser.open(page)
    isolated = browser.page.evaluate(
        "[...document.querySelectorAll('#cards .turn, #cards .id, #cards .tags span')]"
        ".every((e) => e.querySelector('bdi') !== null)"
    )
    assert isolated


def test_terminal_prints_hostile_data_as_text(hostile: Path, capsys: pytest.CaptureFixture[str]):
    explain(hostile, "record-0000001")
    out = capsys.readouterr().out
    assert "\u202e" not in out
    assert "\\u202e" in out
