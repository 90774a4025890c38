"""The figures the page is made of, against plain arithmetic."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ostlight.errors import DataError
from ostlight.models.cost import StageCost
from ostlight.reporting.axes import Axis
from ostlight.reporting.contents import contents
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.figures import Scale, clipped, duration, percent, prefixed, signed
from ostlight.reporting.histogram import WIDE, histogram
from ostlight.reporting.lists import budget_line, lists, margins
from ostlight.reporting.matrix import matrices
from ostlight.reporting.page import write_report
from ostlight.reporting.pareto import pareto
from ostlight.reporting.picks import Pick
from ostlight.reporting.run import Run
from ostlight.reporting.standing import read_standings


@pytest.fixture(scope="module")
def evidence(made: Path) -> Evidence:
    return Evidence.read(Run.open(made))


def test_the_columns_are_those_of_the_score_files(made: Path, evidence: Evidence):
    table = pq.read_table(next((made / "scores").glob("part-*")))
    rows = [r for r in table.to_pylist() if r["state"] == "ok"]
    assert evidence.ids == [r["id"] for r in rows]
    assert evidence.records == 400
    assert evidence.rejected == 4
    assert evidence.groups[0] == "algebra"
    cost = [r["step_size"] ** 2 / 2 * sum(x * x for x in r["phi"]) for r in rows]
    assert evidence.curvature_cost == pytest.approx(cost, rel=1e-5)
    assert evidence.score == pytest.approx(
        [r["step_size"] * r["alignment"] - c for r, c in zip(rows, cost, strict=True)], rel=1e-4
    )
    kept = pq.read_table(made / "selection.parquet")
    assert {i for i, k in zip(evidence.ids, evidence.picks[0].kept, strict=True) if k} == {
        i for i, k in zip(kept["id"].to_pylist(), kept["kept"].to_pylist(), strict=True) if k
    }


def test_the_matrix_holds_means_by_tag_and_group(evidence: Evidence):
    found = matrices(evidence)
    assert [m.tag for m in found] == ["source", "task"]
    for m in found:
        for row in m.rows:
            mask = evidence.tags[m.tag] == row.value
            assert row.count == mask.sum()
            assert evidence.by_group is not None
            values = np.concatenate([evidence.score[mask, None], evidence.by_group[mask]], axis=1)
            assert [c.mean for c in row.cells] == pytest.approx(values.mean(0))
            assert [c.error for c in row.cells] == pytest.approx(values.std(0, ddof=1) / mask.sum() ** 0.5)
            assert row.toxic == pytest.approx(evidence.toxic[mask].mean())
    worst = min(found[0].rows, key=lambda row: row.cells[0].mean)
    assert worst.value == "model-b"
    assert worst.cells[0].told == "hurt"


def test_the_line_parts_the_kept_from_the_dropped(evidence: Evidence):
    (pick,) = evidence.picks
    margin = margins(evidence, pick)
    assert margin is not None
    assert ((margin > 0) == pick.kept).all()
    near = lists(evidence, [margin], longest=10)["borderline"]
    assert set(near) == set(np.argsort(np.abs(margin))[:10])
    assert budget_line(np.array([3.0, 1.0, 2.0]), 1) == 2.5


def test_within_a_tag_each_value_has_its_own_line(evidence: Evidence):
    pick = replace(evidence.picks[0], stratify_by="source")
    margin = margins(evidence, pick)
    assert margin is not None
    for source in set(evidence.tags["source"]):
        rows = evidence.tags["source"] == source
        assert (margin[rows] > 0).sum() == pick.kept[rows].sum()


def test_what_was_picked_as_a_set_has_no_line(evidence: Evidence):
    order, rank = np.argsort(-evidence.score), np.full(len(evidence), -1)
    rank[order[[0, 1, 3]]] = range(3)
    assert margins(evidence, Pick("4", None, rank)) is None
    rank[order[2]] = 3
    assert margins(evidence, Pick("4", None, rank)) is not None


def test_the_histogram_counts_every_sample_once(evidence: Evidence):
    (pick,) = evidence.picks
    plot = histogram(evidence, pick, {"line": 0.0}, Scale(1e6, "micronats"), WIDE)
    assert sum(int(bar.told.split()[0].replace(",", "")) for bar in plot.bars) == len(evidence)
    kinds = {kind: 0 for kind in ("kept", "dropped", "toxic")}
    for bar in plot.bars:
        kinds[bar.kind] += int(bar.told.split()[0].replace(",", ""))
    assert kinds["kept"] == pick.size
    assert kinds["toxic"] == (evidence.toxic & ~pick.kept).sum()
    assert plot.lines[0].x == plot.zero


def test_no_budgets_line_crosses_anothers_text(evidence: Evidence):
    low, high = np.quantile(evidence.score, [0.05, 0.95])
    budgets = {f"{k}%": float(v) for k, v in enumerate(np.linspace(low, high, 7))}
    drawn = histogram(evidence, None, budgets, Scale(1.0, ""), WIDE).lines
    assert [line.row for line in drawn] == list(range(7))
    for side in ("start", "end"):
        for one, other in itertools.permutations([line for line in drawn if line.anchor == side], 2):
            reached_over = other.x > one.x if side == "start" else other.x < one.x
            assert not reached_over or other.row > one.row


def test_axes_put_ticks_on_round_values():
    assert Axis(0, 10, 0, 100).ticks(5, "{:g}".format) == [
        (0, "0"),
        (20, "2"),
        (40, "4"),
        (60, "6"),
        (80, "8"),
        (100, "10"),
    ]
    texts = [text for _, text in Axis(30, 4000, 0, 600, logarithmic=True).ticks(4, "{:g}".format)]
    assert texts == ["100", "1000"]
    bent = Axis(-100, 100, 0, 600, linear_to=1.0)
    assert bent.at(0) == 300
    places = [x for x, _ in bent.ticks(6, str)]
    assert all(b - a >= 99 for a, b in itertools.pairwise(places))
    edges = bent.edges(20)
    assert 0.0 in edges
    assert np.diff([bent.scaled(e) for e in edges]) == pytest.approx(bent.scaled(edges[1]) - bent.scaled(edges[0]))


def test_the_front_is_what_nothing_cheaper_beats(tmp_path: Path, results: Any):
    results(tmp_path)
    standings = {s.label: s for s in read_standings(tmp_path)}
    assert standings["good"].cost("device_s") == 50
    assert standings["good"].accuracy["all"].mean == pytest.approx(0.705)
    assert {name for name, s in standings.items() if s.on_front["flops"]} == {"base", "random", "good"}
    plot = pareto(list(standings.values()), "flops", WIDE)
    assert plot is not None
    assert {p.name: p.kind for p in plot.points} == {
        "full": "behind",
        "random 20%": "front",
        "dear 20%": "behind",
        "good 20%": "front",
    }
    assert plot.base is not None
    good = plot.points[-1]
    assert plot.front.startswith("M")
    assert plot.front.endswith(f"L{good.x} {good.y}L{plot.right} {good.y}")
    assert good.text is not None
    assert good.text[2] == "end"  # to its right runs the front


def test_a_line_that_is_no_result_is_named(tmp_path: Path):
    (tmp_path / "results.jsonl").write_text(json.dumps({"selector": "x"}) + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl:1 is no result"):
        read_standings(tmp_path)


def test_what_is_missing_is_said(made: Path, tmp_path: Path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(made, bare)
    (bare / "selector" / "notes.json").unlink()
    (bare / "selection.parquet").unlink()
    config = (bare / "config.yaml").read_text()
    (bare / "config.yaml").write_text(config.replace("pool.jsonl", "gone.jsonl"))
    shown = contents(Run.open(bare))
    said = " ".join(shown["missing"])
    assert "the pool cannot be opened" in said
    assert "Names of the anchor groups" in said
    assert "the target was not trained" in said
    assert shown["scored"]["picks"] == []
    assert "not at hand" in write_report(bare).read_text()


def test_what_was_tried_is_told(made: Path, tmp_path: Path):
    import shutil

    tried = tmp_path / "tried"
    shutil.copytree(made, tried)
    losses = {"ost": [0.625, 0.75], "set 10x": None, "random": [0.5, 0.25]}
    notes = {"set 10x": {"set": {"value": 1.0, "gap": 0.5, "greedy_gap": 0.25}}}
    note = {"samples": 4, "selected": "random", "losses": losses, "notes": notes}
    run = Run.open(tried)
    label = run.config.budget.label
    picks = {"7 samples": {"best_of": note | {"selected": "other"}}, label: {"best_of": note, "gap": {"of": 0.5}}}
    for budget, noted in picks.items():
        run.folder.cost_log.add(StageCost("select", more={"budget": budget, "noted": noted}))
    page = write_report(tried).read_text()
    assert "Kept: <b>random</b>" in page
    assert (
        "ost <b>0.625 and 0.75</b>, set 10x <b>diverged</b> (relaxed less greedy 0.25), random <b>0.5 and 0.25</b>."
        in page
    )
    assert "so a random one will do" in page
    assert f"gap ({label})</dt><dd>of <b>0.5</b>" in page
    assert "Kept: <b>other</b>" not in page


def test_a_run_without_scores_is_still_a_page(made: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((made / "config.yaml").read_text())
    text = write_report(empty).read_text()
    assert "the folder holds no scores" in text
    assert "No record was set aside" in text


def test_the_quarantine_is_told_by_reason(made: Path):
    shown = contents(Run.open(made))
    assert [(r["reason"], r["count"]) for r in shown["reasons"]] == [("empty_answer", 2), ("corrupt_image", 2)]
    assert shown["total"].flops == pytest.approx(9.2e13)


def test_numbers_are_short():
    assert signed(-0.004) == "0"
    assert signed(-1.234) == "\N{MINUS SIGN}1.23"
    assert prefixed(1.63e12) == "1.63 T"
    assert [duration(s) for s in (0.42, 42, 720, 12_240)] == ["0.4 s", "42 s", "12 min", "3.4 h"]
    assert [percent(x) for x in (0, 0.004, 0.5)] == ["0%", "0.4%", "50%"]
    assert clipped("abcdef", 4) == "abcd … (2 more characters)"
    assert Scale.of(np.array([0.002, -0.001])).show(0.0012) == "+1.20"
