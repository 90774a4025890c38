"""The numbers on the page against plain arithmetic."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.benchmarking.results import pareto_optimal
from ostlight.errors import DataError
from ostlight.models.cost import StageCost
from ostlight.reporting.charts import Axis, histogram
from ostlight.reporting.contents import page_contents
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.matrix import MeanUtility, compute_matrices
from ostlight.reporting.number_format import UnitScale, clipped, duration, flops, percent, signed
from ostlight.reporting.page import write_report
from ostlight.reporting.results_table import read_results
from ostlight.reporting.sample_cards import sample_lists
from ostlight.reporting.score_columns import DEFECT, ScoreColumns
from ostlight.reporting.selections import Selection, cutoff_score


@pytest.fixture(scope="module")
def scores(finished_run: Path) -> ScoreColumns:
    return ScoreColumns.read(FinishedRun.open(finished_run))


def test_columns_equal_those_of_the_score_files(finished_run: Path, scores: ScoreColumns):
    table = pq.read_table(next((finished_run / "scores").glob("part-*")))
    rows = [r for r in table.to_pylist() if r["state"] == "ok"]
    assert scores.ids == [r["id"] for r in rows]
    assert scores.records == 400
    assert scores.rejected == 4
    assert scores.groups[0] == "algebra"
    cost = [r["step_size"] ** 2 / 2 * sum(x * x for x in r["phi"]) for r in rows]
    assert scores.curvature_cost == pytest.approx(cost, rel=1e-5)
    assert scores.score == pytest.approx(
        [r["step_size"] * r["alignment"] - c for r, c in zip(rows, cost, strict=True)], rel=1e-4
    )
    kept = pq.read_table(finished_run / "selection.parquet")
    assert {i for i, k in zip(scores.ids, scores.selections[0].kept, strict=True) if k} == {
        i for i, k in zip(kept["id"].to_pylist(), kept["kept"].to_pylist(), strict=True) if k
    }


def test_matrix_holds_means_by_tag_and_group(scores: ScoreColumns):
    found = compute_matrices(scores)
    assert [m.tag for m in found] == ["source", "task"]
    for m in found:
        for row in m.rows:
            mask = scores.tags[m.tag] == row.value
            assert row.count == mask.sum()
            assert scores.by_group is not None
            values = np.concatenate([scores.score[mask, None], scores.by_group[mask]], axis=1)
            assert [c.mean for c in row.utilities] == pytest.approx(values.mean(0))
            assert [c.error for c in row.utilities] == pytest.approx(values.std(0, ddof=1) / mask.sum() ** 0.5)
            assert row.toxic == pytest.approx(scores.toxic[mask].mean())
    worst = min(found[0].rows, key=lambda row: row.utilities[0].mean)
    assert worst.value == "model-b"
    assert worst.utilities[0].effect == "hurt"


@pytest.mark.parametrize("samples", [2, 3, 5, 10])
def test_sources_that_neither_help_nor_hurt_are_seldom_called_so(samples: int):
    values = np.random.default_rng(0).normal(size=(2000, samples))
    errors = values.std(1, ddof=1) / samples**0.5
    effects = [MeanUtility(float(m), float(e), samples).effect for m, e in zip(values.mean(1), errors, strict=True)]
    assert np.mean([effect != "unclear" for effect in effects]) <= 0.06


def test_equal_scores_and_few_ones_have_no_known_effect():
    assert MeanUtility(-0.01, 0.0, 100).effect == "unclear"
    assert MeanUtility(-0.1, float(np.full(100, -0.1).std(ddof=1)) / 10, 100).effect == "unclear"
    assert MeanUtility(1.0, 0.01, 4).effect == "unclear"
    assert [MeanUtility(sign, 0.01, 5).effect for sign in (1.0, -1.0)] == ["help", "hurt"]


def test_cutoff_separates_kept_from_dropped(scores: ScoreColumns):
    (selection,) = scores.selections
    margin = scores.cutoff_margins(selection)
    assert margin is not None
    assert ((margin > 0) == selection.kept).all()
    near = sample_lists(scores, longest=10)["borderline"]
    assert set(near) == set(np.argsort(np.abs(margin))[:10])
    assert cutoff_score(np.array([3.0, 1.0, 2.0]), 1) == 2.5


def test_stratified_budget_has_a_cutoff_in_each_stratum(scores: ScoreColumns):
    selection = replace(scores.selections[0], stratify_by="source")
    margin = scores.cutoff_margins(selection)
    assert margin is not None
    for source in set(scores.tags["source"]):
        rows = scores.tags["source"] == source
        assert (margin[rows] > 0).sum() == selection.kept[rows].sum()


def test_set_selection_has_no_cutoff(scores: ScoreColumns):
    order, rank = np.argsort(-scores.score), np.full(len(scores), -1)
    rank[order[[0, 1, 3]]] = range(3)
    assert scores.cutoff_margins(Selection("4", None, rank)) is None
    rank[order[2]] = 3
    assert scores.cutoff_margins(Selection("4", None, rank)) is not None


def test_histogram_counts_every_sample_once(scores: ScoreColumns):
    (selection,) = scores.selections
    chart = histogram(scores, selection, {"cutoff": 1e-6}, UnitScale(1e6, "micronats"))
    counts = Counter({state: 0 for state in ("kept", "dropped", "toxic")})
    for bar in chart.bars:
        counts[bar.state] += bar.samples
        assert bar.low >= 0 or bar.high <= 0, "no bar holds utilities of both signs"
    assert counts["kept"] == selection.size
    assert counts["toxic"] == (scores.toxic & ~selection.kept).sum()
    assert counts.total() == len(scores)
    assert chart.cutoffs == {"cutoff": pytest.approx(1.0)}


def test_bars_of_a_bin_are_stacked(scores: ScoreColumns):
    (selection,) = scores.selections
    tops: dict[float, int] = {}
    for bar in histogram(scores, selection, {}, UnitScale(1e6, "micronats")).bars:
        assert bar.below == tops.get(bar.low, 0)
        tops[bar.low] = bar.below + bar.samples
    assert sum(tops.values()) == len(scores)


def test_equal_scores_are_one_bar(scores: ScoreColumns):
    equal = replace(scores, score=np.full(len(scores), 3.0))
    chart = histogram(equal, None, {}, UnitScale(1.0, ""))
    assert chart.x.low <= 3 <= chart.x.high
    assert sum(bar.samples for bar in chart.bars) == len(scores)
    assert len({bar.low for bar in chart.bars}) == 1


def test_axis_ticks_are_round_values():
    assert Axis("", 0, 10, 0, 100, "{:g}".format).ticks == [
        (0, "0"),
        (20, "2"),
        (40, "4"),
        (60, "6"),
        (80, "8"),
        (100, "10"),
    ]
    assert Axis("", 30, 4000, 0, 600, "{:g}".format).at(1) == 0


def test_results_are_read_with_their_costs_and_what_nothing_cheaper_beats(tmp_path: Path, write_results: Any):
    write_results(tmp_path)
    rows = read_results(tmp_path)
    results = {row.label: row for row in rows}
    assert results["good"].total_s == 50
    assert results["good"].values["all"].mean == pytest.approx(0.705)
    shown = (tmp_path / "table.jsonl").read_text().splitlines()
    assert [json.loads(line)["is_pareto_optimal"] for line in shown] == pareto_optimal(rows)
    optimal = {row.label for row, is_optimal in zip(rows, pareto_optimal(rows), strict=True) if is_optimal}
    assert optimal == {"base", "random", "good"}


def test_line_that_is_no_result_is_named(tmp_path: Path):
    (tmp_path / "results.jsonl").write_text(json.dumps({"selector": "x"}) + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl:1 is no result"):
        read_results(tmp_path)


def test_missing_parts_are_listed(finished_run: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    shutil.copytree(finished_run, bare)
    (bare / "selector" / "notes.json").unlink()
    (bare / "selection.parquet").unlink()
    config = (bare / "config.yaml").read_text()
    (bare / "config.yaml").write_text(config.replace("pool.jsonl", "gone.jsonl"))
    shown = page_contents(FinishedRun.open(bare))
    said = " ".join(shown["missing"])
    assert "the pool cannot be opened" in said
    assert "Names of the anchor groups" in said
    assert "the target was not trained" in said
    assert shown["scored"]["selections"] == []
    assert "no_pool: the pool cannot be opened" in write_report(bare).read_text()


def test_utilities_by_group_that_some_samples_lack_are_named_as_missing(finished_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (part,) = (run / "scores").glob("part-*")
    table = pq.read_table(part)
    values = [None, *table["utility_by_group"].to_pylist()[1:]]
    column = pa.array(values, table.schema.field("utility_by_group").type)
    pq.write_table(table.set_column(table.column_names.index("utility_by_group"), "utility_by_group", column), part)
    shown = page_contents(FinishedRun.open(run))
    assert shown["scored"]["scores"].by_group is None
    assert "Utilities by anchor group: 1 scored samples have none." in shown["missing"]


def test_defect_labels_name_records_as_a_benchmark_reads_them(finished_run: Path, tmp_path: Path):
    """Whole numbers are ids too, and labels of other records are named as missing."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (part,) = (run / "scores").glob("part-*")
    table = pq.read_table(part)
    ids = [str(k) for k in range(len(table))]
    pq.write_table(table.set_column(table.column_names.index("id"), "id", pa.array(ids)), part)
    (run / "data").mkdir()
    labels = run / "data" / "defect_labels.parquet"
    pq.write_table(pa.table({"id": list(range(len(ids))), "defect": ["noise", None] * (len(ids) // 2)}), labels)
    columns = ScoreColumns.read(FinishedRun.open(run))
    assert columns.tags[DEFECT].tolist() == ["clean" if int(i) % 2 else "noise" for i in columns.ids]
    pq.write_table(pa.table({"id": ["zz"], "defect": ["noise"]}), labels)
    shown = page_contents(FinishedRun.open(run))
    assert DEFECT not in shown["scored"]["scores"].tags
    assert any(line.startswith("Defects: no id of the defect labels (such as 'zz')") for line in shown["missing"])


def test_trial_trainings_are_shown(finished_run: Path, tmp_path: Path):
    tried = tmp_path / "tried"
    shutil.copytree(finished_run, tried)
    losses = {"ost": [0.625, 0.75], "set 10x": None, "random": [0.5, 0.25]}
    notes = {"set 10x": {"set": {"value": 1.0, "gap": 0.5, "greedy_gap": 0.25}}}
    note = {"samples": 4, "selected": "random", "losses": losses, "notes": notes}
    run = FinishedRun.open(tried)
    label = run.config.budget.label
    by_budget = {"7 samples": {"best_of": note | {"selected": "other"}}, label: {"best_of": note, "gap": {"of": 0.5}}}
    for budget, noted in by_budget.items():
        run.folder.cost_log.add(StageCost("select", more={"budget": budget, "noted": noted}))
    page = write_report(tried).read_text()
    assert "Kept: <b><bdi>random</bdi></b>" in page
    assert (
        "ost <b>0.625 and 0.75</b>, set 10x <b>diverged</b> (greedy solution below the relaxed optimum by 0.25), "
        "random <b>0.5 and 0.25</b>." in page
    )
    assert "No candidate is better than the random subset" in page
    assert f"gap ({label})</dt><dd>of <b>0.5</b>" in page
    assert "Kept: <b><bdi>other</bdi></b>" not in page


def test_why_a_trial_was_kept_and_others_refused_is_said(finished_run: Path, tmp_path: Path):
    tried = tmp_path / "tried"
    shutil.copytree(finished_run, tried)
    note = {"samples": 4, "selected": "filter", "losses": {"filter": [0.25, 0.5], "low loss": [0.125, 0.25]}}
    note |= {"rule": "lowest", "refused": {"low loss": ["sum", 4.5]}}
    run = FinishedRun.open(tried)
    run.folder.cost_log.add(StageCost("select", more={"budget": run.config.budget.label, "noted": {"best_of": note}}))
    page = write_report(tried).read_text()
    assert "Kept: <b><bdi>filter</bdi></b>, the lowest mean loss, of those not refused." in page
    assert "Refused: <bdi>low loss</bdi>, after which the loss of <bdi>sum</bdi> is 4.5 times" in page


def test_run_without_scores_has_a_page(finished_run: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((finished_run / "config.yaml").read_text())
    text = write_report(empty).read_text()
    assert "Scores: the folder holds none." in text
    assert "No record was rejected" in text


def test_rejected_records_are_counted_by_reason(finished_run: Path):
    shown = page_contents(FinishedRun.open(finished_run))
    assert [(r["reason"], r["count"]) for r in shown["rejected"]] == [("empty_answer", 2), ("corrupt_image", 2)]
    assert shown["total"].flops == pytest.approx(9.2e13)


def test_number_formats():
    assert signed(-0.004) == "0"
    assert signed(-1.234) == "\N{MINUS SIGN}1.23"
    assert [flops(x) for x in (0, 1.63e12, 4e9)] == ["0", "1.6e12", "4.0e9"]
    assert [duration(s) for s in (0.42, 42, 720, 12_240)] == ["0.4 s", "42 s", "12 min", "3.4 h"]
    assert [percent(x) for x in (0, 0.004, 0.5)] == ["0%", "0.4%", "50%"]
    assert clipped("abcdef", 4) == "abcd … (2 more characters)"
    assert UnitScale.of(np.array([0.002, -0.001])).show(0.0012) == "+1.20"
