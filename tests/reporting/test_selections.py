"""A benchmark's selections, budget by budget."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.config.budget import Budget
from ostlight.models.cost import StageCost
from ostlight.reporting.contents import page_contents
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.page import write_report
from ostlight.reporting.score_columns import ScoreColumns

if TYPE_CHECKING:
    from browser import Browser

BUDGETS = "[{count: 40}, {fraction: 0.5, stratify_by: task}, {count: 30}]"


@pytest.fixture(scope="module")
def scores(finished_run: Path) -> ScoreColumns:
    return ScoreColumns.read(FinishedRun.open(finished_run))


@pytest.fixture
def bench(finished_run: Path, tmp_path: Path, write_results: Callable[..., None], scores: ScoreColumns) -> Path:
    """A finished benchmark of one selector: its ranking at two budgets, at the third a random subset."""
    text = (finished_run / "config.yaml").read_text()
    section = f"benchmark: {{selectors: [{{name: random}}], budgets: {BUDGETS}}}\n"
    (tmp_path / "config.yaml").write_text(text.replace("benchmark: null\n", section))
    write_results(tmp_path)
    place = tmp_path / "selectors" / "ost-0123abcd"
    shutil.copytree(finished_run, place)
    (place / "selection.parquet").unlink()
    order = scores.position[np.argsort(scores.place)]
    save(place, "40", order[:40])
    save(place, "50%_by_task", np.array(best_half_of_each_task(scores)))
    save(place, "30", np.random.default_rng(0).permutation(order)[:30])
    return tmp_path


def save(place: Path, name: str, kept: np.ndarray, key: str = "00000000") -> None:
    (place / "selections").mkdir(exist_ok=True)
    np.save(place / "selections" / f"{name}-{key}.npy", kept)


def best_half_of_each_task(scores: ScoreColumns) -> list[int]:
    ranked = np.argsort(scores.place)
    tasks = scores.tags["task"]
    rows = [r for t in sorted(set(tasks)) for r in ranked[tasks[ranked] == t][: (tasks == t).sum() // 2]]
    return scores.position[sorted(rows, key=lambda r: scores.place[r])].tolist()


def listed(shown: dict, name: str) -> set[int]:
    """Places of the list's samples."""
    return {card.summary.place for card in shown["cards"] if name in card.lists}


def test_each_budget_lists_samples_near_its_cutoff_and_a_random_subset_none(bench: Path, scores: ScoreColumns):
    shown = page_contents(FinishedRun.open(bench))["scored"]
    assert list(shown["lists"]) == ["useful", "toxic", "borderline", "borderline1"]
    assert {38, 39, 40, 41} < listed(shown, "borderline")
    kept = set(best_half_of_each_task(scores))
    for task in set(scores.tags["task"]):
        rows = [r for r in np.argsort(scores.place) if scores.tags["task"][r] == task]
        last = max(k for k, r in enumerate(rows) if scores.position[r] in kept)
        assert {int(scores.place[r]) for r in rows[last : last + 2]} < listed(shown, "borderline1")
    assert [(selection["budget"], selection["size"], selection["has_cutoff"]) for selection in shown["selections"]] == [
        ("40", 40, True),
        ("50% by task", len(kept), True),
        ("30", 30, False),
    ]


def test_cards_matrix_tiles_and_histogram_show_each_budget(bench: Path):
    shown = page_contents(FinishedRun.open(bench))["scored"]
    for card in shown["cards"]:
        first, *_ = card.summary.outcomes
        assert first.state == ("kept" if card.summary.place < 40 else "dropped")
        assert (first.margin > 0) == (first.state == "kept")
    for matrix in shown["matrices"]:
        assert sum(row.count * row.kept[0] for row in matrix.rows) == pytest.approx(40)
    page = write_report(bench).read_text()
    assert "kept, rank 1 (budget 40)</span>" in page
    assert re.search(r"<b>30</b><span>kept \(budget 30\)</span><small>7\.6% of the scored, \d+ of them toxic", page)
    assert "The kept samples (budget 30) are not simply those with the highest scores" in page
    assert page.count(">cutoff of budget 50% by task</text>") == 1


def test_two_selections_for_one_budget_are_named_by_file(bench: Path, scores: ScoreColumns):
    place = bench / "selectors" / "ost-0123abcd"
    save(place, "40", scores.position[:40], key="ffffffff")
    (run,) = FinishedRun.open(bench).scored_runs
    assert [p.budget for p in ScoreColumns.read(run).selections][:2] == ["40, 00000000", "40, ffffffff"]


def test_two_selections_for_one_budget_are_named_by_selector(bench: Path, scores: ScoreColumns):
    save(bench / "selectors" / "ost-0123abcd", "40", scores.position[:40], key="ffffffff")
    save(bench / "selectors" / "ost-0123abcd", "40", scores.position[:40], key="5ca1ab1e")
    used = {"ranking": "40-00000000", "set": "40-ffffffff", "ost": "40-00000000"}
    rows = [{"scores": "selectors/ost-0123abcd", "selector": s, "variant": "", "selection": p} for s, p in used.items()]
    (bench / "score_index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = FinishedRun.open(bench).scored_runs
    assert [p.budget for p in ScoreColumns.read(run).selections][:2] == ["40, ranking, ost", "40, set"]


def test_benchmark_of_one_budget_shows_the_same_as_its_selection(finished_run: Path, bench: Path, scores: ScoreColumns):
    place = bench / "selectors" / "ost-0123abcd"
    shutil.rmtree(place / "selections")
    fifth = Budget(fraction=0.2)
    config = bench / "config.yaml"
    config.write_text(config.read_text().replace(BUDGETS, "[{fraction: 0.2}]"))
    best = scores.position[np.argsort(scores.place)]
    save(place, fifth.label, best[: fifth.size(len(best))])
    one, other = (write_report(path, bench / "page.html").read_text() for path in (finished_run, bench))
    samples = re.compile(r'<section id="distribution">.*<section id="rejected">', re.DOTALL)
    shown, expected = (samples.search(page) for page in (other, one))
    assert shown
    assert expected
    assert shown[0].replace(str(place), str(finished_run)) == expected[0]


def test_a_configuration_above_a_run_of_its_own_changes_nothing(bench: Path, finished_run: Path):
    """The benchmark's own folder is that configuration, with other budgets."""
    for place in ("runs/demo", "selectors/demo"):
        shutil.copytree(finished_run, bench / place)
        run = FinishedRun.open(bench / place)
        assert [budget.label for budget in run.budgets] == ["20%"]
        assert [selection.budget for selection in ScoreColumns.read(run).selections] == ["20%"]
    assert FinishedRun.open(bench / "runs/demo").parent is None


def test_what_a_benchmark_s_selector_kept_is_found_from_within_its_folder(bench: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(bench / "selectors" / "ost-0123abcd")
    assert [budget.label for budget in FinishedRun.open(".").budgets] == ["40", "50% by task", "30"]


def test_kept_records_without_a_score_are_counted_and_keep_their_ranks(finished_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    file = run / "selection.parquet"
    table = pq.read_table(file)
    rejected = {k for k, state in enumerate(table["state"].to_pylist()) if state == "rejected"}
    rank = [r if r is None else r + len(rejected) for r in table["rank"].to_pylist()]
    for k, position in enumerate(sorted(rejected)):
        rank[position] = k
    pq.write_table(table.set_column(table.column_names.index("rank"), "rank", pa.array(rank, pa.int64())), file)
    scores = ScoreColumns.read(FinishedRun.open(run))
    (selection,) = scores.selections
    assert (selection.size, selection.unscored, selection.kept.sum()) == (79 + 4, 4, 79)
    assert selection.rank[scores.place == 0] == 4
    page = write_report(run).read_text()
    assert "<b>83</b><span>kept</span><small>20% of the scored, 4 without a score</small>" in page


def test_selectors_of_the_same_scores_and_budget_have_notes_of_their_own(bench: Path):
    (run,) = FinishedRun.open(bench).scored_runs
    for selector, gap in (("set", 0.25), ("ost", 0.5), ("set", 0.125)):
        run.folder.cost_log.add(StageCost("select", selector, more={"budget": "40", "noted": {"gap": gap}}))
    run.folder.cost_log.add(StageCost("select", "ost", more={"budget": "30", "noted": {"gap": 1.0}}))
    assert run.selection_notes == {"40, set": {"gap": 0.125}, "40, ost": {"gap": 0.5}, "30": {"gap": 1.0}}


def test_seeds_that_select_have_notes_of_their_own_where_these_differ(bench: Path):
    (run,) = FinishedRun.open(bench).scored_runs
    selected = [("40", "ost", 0, 0.5), ("40", "ost", 1, 0.25), ("40", "set", 0, 0.125), ("40", "ost", 1, 1.0)]
    for budget, selector, seed, gap in [*selected, ("30", "ost", 0, 2.0), ("30", "ost", 1, 2.0)]:
        more = {"budget": budget, "seed": seed, "noted": {"gap": gap}}
        run.folder.cost_log.add(StageCost("select", selector, more=more))
    assert run.selection_notes == {
        "40, ost, seed 0": {"gap": 0.5},
        "40, ost, seed 1": {"gap": 1.0},
        "40, set": {"gap": 0.125},
        "30": {"gap": 2.0},
    }


def test_tabs_switch_between_budgets(bench: Path, browser: Browser):
    browser.open(write_report(bench), width=390)
    assert browser.problems == []
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= 390
    browser.page.click('[data-list="borderline1"]')
    margins = browser.page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.margin1)"
    )
    assert margins == sorted(margins)
    shown = "[...document.querySelectorAll('#distribution rect.kept title')]" + (
        ".filter((t) => t.closest('svg').checkVisibility()).reduce((n, t) => n + parseInt(t.textContent), 0)"
    )
    assert browser.page.evaluate(shown) == 40
    browser.page.click('#distribution [data-show="3"]')
    assert browser.page.evaluate(shown) == 30
