"""What a benchmark's selector kept within each budget is told as a selection's is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from ostlight.config.budget import Budget
from ostlight.reporting.contents import contents
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.page import write_report
from ostlight.reporting.run import Run

BUDGETS = "[{count: 40}, {fraction: 0.5, stratify_by: task}, {count: 30}]"


@pytest.fixture(scope="module")
def evidence(made: Path) -> Evidence:
    return Evidence.read(Run.open(made))


@pytest.fixture
def bench(made: Path, tmp_path: Path, results: Callable[..., None], evidence: Evidence) -> Path:
    """A finished benchmark of one selector: its ranking at two budgets, at the third a draw."""
    text = (made / "config.yaml").read_text()
    section = f"benchmark: {{selectors: [{{name: random}}], budgets: {BUDGETS}}}\n"
    (tmp_path / "config.yaml").write_text(text.replace("benchmark: null\n", section))
    results(tmp_path)
    place = tmp_path / "selectors" / "ost-0123abcd"
    shutil.copytree(made, place)
    (place / "selection.parquet").unlink()
    order = evidence.position[np.argsort(evidence.place)]
    save(place, "40", order[:40])
    save(place, "50%_by_task", np.array(best_half_of_each_task(evidence)))
    save(place, "30", np.random.default_rng(0).permutation(order)[:30])
    return tmp_path


def save(place: Path, name: str, kept: np.ndarray, key: str = "00000000") -> None:
    (place / "picks").mkdir(exist_ok=True)
    np.save(place / "picks" / f"{name}-{key}.npy", kept)


def best_half_of_each_task(evidence: Evidence) -> list[int]:
    ranked = np.argsort(evidence.place)
    tasks = evidence.tags["task"]
    rows = [r for t in sorted(set(tasks)) for r in ranked[tasks[ranked] == t][: (tasks == t).sum() // 2]]
    return evidence.position[sorted(rows, key=lambda r: evidence.place[r])].tolist()


def listed(shown: dict, name: str) -> set[int]:
    """Places of the list's samples."""
    return {card.story.place for card in shown["cards"] if name in card.lists}


def test_each_budget_has_its_borderline_samples_and_a_draw_has_none(bench: Path, evidence: Evidence):
    shown = contents(Run.open(bench))["scored"]
    assert list(shown["lists"]) == ["useful", "toxic", "borderline", "borderline1"]
    assert {38, 39, 40, 41} < listed(shown, "borderline")
    kept = set(best_half_of_each_task(evidence))
    for task in set(evidence.tags["task"]):
        rows = [r for r in np.argsort(evidence.place) if evidence.tags["task"][r] == task]
        last = max(k for k, r in enumerate(rows) if evidence.position[r] in kept)
        assert {int(evidence.place[r]) for r in rows[last : last + 2]} < listed(shown, "borderline1")
    assert [(pick["budget"], pick["size"], pick["lined"]) for pick in shown["picks"]] == [
        ("40", 40, True),
        ("50% by task", len(kept), True),
        ("30", 30, False),
    ]


def test_cards_matrix_tiles_and_histogram_tell_each_budget(bench: Path):
    shown = contents(Run.open(bench))["scored"]
    for card in shown["cards"]:
        first, *_ = card.story.parts
        assert first.state == ("kept" if card.story.place < 40 else "dropped")
        assert (first.margin > 0) == (first.state == "kept")
    for matrix in shown["matrices"]:
        assert sum(row.count * row.kept[0] for row in matrix.rows) == pytest.approx(40)
    page = write_report(bench).read_text()
    assert "kept, rank 1 (budget 40)</span>" in page
    assert re.search(r"<b>30</b><span>kept \(budget 30\)</span><small>7\.6% of the scored, \d+ of them toxic", page)
    assert "The kept (budget 30) are not simply the highest scores" in page
    assert page.count(">budget 50% by task</text>") == 6, "two sizes for each of three budgets"


def test_what_was_picked_in_two_ways_is_told_apart_by_the_files(bench: Path, evidence: Evidence):
    place = bench / "selectors" / "ost-0123abcd"
    save(place, "40", evidence.position[:40], key="ffffffff")
    (run,) = Run.open(bench).scored
    assert [p.budget for p in Evidence.read(run).picks][:2] == ["40, 00000000", "40, ffffffff"]


def test_what_was_picked_in_two_ways_is_told_apart_by_who_did(bench: Path, evidence: Evidence):
    save(bench / "selectors" / "ost-0123abcd", "40", evidence.position[:40], key="ffffffff")
    save(bench / "selectors" / "ost-0123abcd", "40", evidence.position[:40], key="5ca1ab1e")
    used = {"ranking": "40-00000000", "set": "40-ffffffff", "ost": "40-00000000"}
    rows = [{"scores": "selectors/ost-0123abcd", "selector": s, "variant": "", "pick": p} for s, p in used.items()]
    (bench / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = Run.open(bench).scored
    assert [p.budget for p in Evidence.read(run).picks][:2] == ["40, ranking, ost", "40, set"]


def test_a_benchmark_of_one_budget_is_told_as_its_selection_would_be(made: Path, bench: Path, evidence: Evidence):
    place = bench / "selectors" / "ost-0123abcd"
    shutil.rmtree(place / "picks")
    fifth = Budget(fraction=0.2)
    config = bench / "config.yaml"
    config.write_text(config.read_text().replace(BUDGETS, "[{fraction: 0.2}]"))
    best = evidence.position[np.argsort(evidence.place)]
    save(place, fifth.label, best[: fifth.size(len(best))])
    one, other = (write_report(path, bench / "page.html").read_text() for path in (made, bench))
    samples = re.compile(r'<section id="spread">.*<section id="quarantine">', re.DOTALL)
    (told, expected) = (samples.search(page) for page in (other, one))
    assert told
    assert expected
    assert told[0].replace(str(place), str(made)) == expected[0]


def test_the_reader_turns_from_budget_to_budget(bench: Path, browser: Browser):
    browser.open(write_report(bench), width=390)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.click('[data-list="borderline1"]')
    margins = browser.run(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.margin1)"
    )
    assert margins == sorted(margins)
    shown = "[...document.querySelectorAll('#spread .narrow rect.kept title')]" + (
        ".filter((t) => t.closest('svg').checkVisibility()).reduce((n, t) => n + parseInt(t.textContent), 0)"
    )
    assert browser.run(shown) == 40
    browser.click('#spread [data-show="3"]')
    assert browser.run(shown) == 30
    browser.type("#row-state", "kept2")
    assert browser.texts("#row-count") == ["30 rows"]
