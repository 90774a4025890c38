"""Rows of a table: what they are compared to, which are Pareto-optimal, and the files they become."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

from ostlight.benchmarking.files import WRITTEN, row_record, write_all
from ostlight.benchmarking.results import RunResult, pareto_optimal, summarise
from ostlight.benchmarking.table import cost_table, results_table


def result(
    label: str, budget: str = "20%", seed: int = 0, correct: str = "1100", flops: float = 1.0, **more
) -> RunResult:
    accuracy, items = {"all": correct.count("1") / len(correct)}, [float(c) for c in correct]
    protocol = more.pop("protocol", "" if label == "base" else "equal_steps")
    return RunResult(label, budget, protocol, seed, accuracy, items=items, training_flops=flops, **more)


def test_a_row_is_compared_to_the_baseline_of_its_own_budget_protocol_and_variant():
    results = [
        result("random", budget, seed, correct, variant=variant)
        for variant in ("a", "b")
        for budget, correct in (("20%", "1000" if variant == "a" else "0000"), ("50%", "1100"))
        for seed in (0, 1)
    ]
    results += [result("ost", "20%", seed, "1110", variant=v) for v in ("a", "b") for seed in (0, 1)]
    rows = {(x.variant, x.label, x.budget): x for x in summarise(results, "random")}
    assert rows["a", "ost", "20%"].difference.mean == 0.5
    assert rows["b", "ost", "20%"].difference.mean == 0.75
    assert rows["a", "random", "20%"].difference is None


def test_a_baseline_without_budget_is_compared_to_every_budget():
    results = [result("full", "", s, "1000") for s in (0, 1)]
    results += [result("ost", b, s, "1100") for b in ("20%", "50%") for s in (0, 1)]
    assert [x.difference and x.difference.mean for x in summarise(results, "full")] == [None, 0.25, 0.25]


def test_the_untrained_model_as_baseline_has_one_run_for_all():
    results = [result("base", "", 0, "1000", flops=0), *(result("ost", "20%", s, "1110") for s in (0, 1, 2))]
    base, ost = summarise(results, "base")
    assert base.difference is None
    assert (ost.difference.mean, ost.difference.seeds) == (0.5, 3)


def test_only_common_seeds_are_paired():
    results = [
        result("random", seed=0, correct="0000"),
        *(result("ost", seed=s, correct="1" * (s + 1) + "0" * (3 - s)) for s in (0, 1)),
    ]
    found = summarise(results, "random")[1].difference
    assert (found.mean, found.seeds) == (0.25, 1)


def test_pareto_optimal_rows_are_not_beaten_at_their_cost():
    results = [
        result("base", "", correct="1000", flops=0),
        result("oracle", correct="1111", flops=1),
        result("cheap", correct="1100", flops=1),
        result("same", correct="1100", flops=2),
        result("dear", correct="1110", flops=3),
        result("wasteful", correct="1000", flops=4),
    ]
    rows = summarise(results)
    assert [row.label for row, on in zip(rows, pareto_optimal(rows), strict=True) if on] == [
        "base",
        "cheap",
        "dear",
    ]


def test_what_asked_a_served_model_is_not_known_to_be_pareto_optimal():
    """Its FLOPs are not counted, so it beats no other row; others beat it where the rest of its cost is enough."""
    results = [
        result("random", correct="1100", flops=1),
        result("ost", correct="1110", flops=1, selection_flops=3),
        result("judge", correct="1110", flops=1, selection_calls=25_000, selection_price=180.0),
        result("local judge", correct="1100", flops=2, selection_calls=25_000),
    ]
    rows = summarise(results)
    assert pareto_optimal(rows) == [True, True, None, False]
    verdicts = [row["Pareto-optimal"] for row in csv.DictReader(io.StringIO(cost_table(rows).csv()))]
    assert verdicts == ["yes", "yes", "not known", ""]


def test_totals_include_selection_and_only_the_cost_table_has_times():
    results = [result("ost", seed=s, flops=2e9, selection_flops=1e9, selection_s=3.0, training_s=4.0) for s in (0, 1)]
    rows = summarise(results)
    cost = next(csv.DictReader(io.StringIO(cost_table(rows).csv())))
    assert (cost["total FLOPs"], cost["total, device seconds"]) == ("3.00e+09", "7.0")
    assert not any("seconds" in heading for heading in results_table(rows, None).headings)
    assert not any(name.endswith("_s") for name in row_record(rows[0], True))


def test_the_same_results_give_the_same_files(tmp_path: Path):
    results = [result(label, seed=s, variant=v) for v in ("a", "b") for label in ("random", "ost") for s in (0, 1)]
    for name in ("one", "two"):
        write_all(results, summarise(results, "random"), "random", tmp_path / name, "t")
    assert {p.name for p in (tmp_path / "one").iterdir()} == set(WRITTEN)
    for name in WRITTEN:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_without_matplotlib_the_tables_are_written_and_the_plot_is_skipped(tmp_path: Path, monkeypatch, logged):
    monkeypatch.delitem(sys.modules, "ostlight.benchmarking.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    (tmp_path / "table.png").touch()
    results = [result("ost", seed=s) for s in (0, 1)]
    assert write_all(results, summarise(results), None, tmp_path, "t") == [n for n in WRITTEN if n != "table.png"]
    assert not (tmp_path / "table.png").exists(), "an older plot would contradict the tables"
    assert "pip install 'ostlight[plots]'" in logged()


def test_importing_the_benchmark_does_not_import_the_plot():
    code = "import sys, ostlight.benchmarking.benchmark; sys.exit('ostlight.benchmarking.plot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
