"""Lines of a table: who is compared to whom, what nothing beats, and the files they become."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ostlight.benchmarking.files import WRITTEN, line_record, write_all
from ostlight.benchmarking.pareto import pareto_front
from ostlight.benchmarking.results import RunResult, summarise
from ostlight.benchmarking.table import accuracy_table, cost_table


def planned(
    label: str, budget: str = "20%", seed: int = 0, correct: str = "1100", flops: float = 1.0, **more
) -> RunResult:
    accuracy = {"all": correct.count("1") / len(correct)}
    protocol = more.pop("protocol", "" if label == "base" else "equal_steps")
    return RunResult(label, budget, protocol, seed, accuracy, correct=correct, training_flops=flops, **more)


def test_a_line_is_compared_to_the_baseline_of_its_own_budget_protocol_and_variant():
    results = [
        planned("random", budget, seed, correct, variant=variant)
        for variant in ("a", "b")
        for budget, correct in (("20%", "1000" if variant == "a" else "0000"), ("50%", "1100"))
        for seed in (0, 1)
    ]
    results += [planned("ost", "20%", seed, "1110", variant=v) for v in ("a", "b") for seed in (0, 1)]
    lines = {(x.variant, x.label, x.budget): x for x in summarise(results, "random")}
    assert lines["a", "ost", "20%"].difference.mean == 0.5
    assert lines["b", "ost", "20%"].difference.mean == 0.75
    assert lines["a", "random", "20%"].difference is None


def test_a_baseline_without_budget_stands_beside_every_budget():
    results = [planned("full", "", s, "1000") for s in (0, 1)]
    results += [planned("ost", b, s, "1100") for b in ("20%", "50%") for s in (0, 1)]
    assert [x.difference and x.difference.mean for x in summarise(results, "full")] == [None, 0.25, 0.25]


def test_the_untrained_model_as_baseline_has_one_run_for_all():
    results = [planned("base", "", 0, "1000", flops=0), *(planned("ost", "20%", s, "1110") for s in (0, 1, 2))]
    base, ost = summarise(results, "base")
    assert base.difference is None
    assert (ost.difference.mean, ost.difference.seeds) == (0.5, 3)


def test_only_seeds_that_both_have_are_paired():
    results = [
        planned("random", seed=0, correct="0000"),
        *(planned("ost", seed=s, correct="1" * (s + 1) + "0" * (3 - s)) for s in (0, 1)),
    ]
    found = summarise(results, "random")[1].difference
    assert (found.mean, found.seeds) == (0.25, 1)


def test_the_front_is_what_nothing_beats_for_less():
    results = [
        planned("base", "", correct="1000", flops=0),
        planned("oracle", correct="1111", flops=1),
        planned("cheap", correct="1100", flops=1),
        planned("same", correct="1100", flops=2),
        planned("dear", correct="1110", flops=3),
        planned("wasteful", correct="1000", flops=4),
    ]
    lines = summarise(results)
    assert [line.label for line, on in zip(lines, pareto_front(lines), strict=True) if on] == ["base", "cheap", "dear"]


def test_selection_counts_in_the_total_and_times_stand_in_the_costs_alone():
    results = [planned("ost", seed=s, flops=2e9, selection_flops=1e9, selection_s=3.0, training_s=4.0) for s in (0, 1)]
    lines = summarise(results)
    cost = next(csv.DictReader(io.StringIO(cost_table(lines).csv())))
    assert (cost["total FLOPs"], cost["total device-s"]) == ("3.00e+09", "7.0")
    assert not any(" s" in h or "-s" in h for h in accuracy_table(lines, None).head)
    assert not any(name.endswith("_s") for name in line_record(lines[0], True))


def test_all_files_are_written_alike_twice(tmp_path: Path):
    results = [planned(label, seed=s, variant=v) for v in ("a", "b") for label in ("random", "ost") for s in (0, 1)]
    for name in ("one", "two"):
        write_all(results, summarise(results, "random"), "random", tmp_path / name, "t")
    assert {p.name for p in (tmp_path / "one").iterdir()} == set(WRITTEN)
    for name in WRITTEN:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
