"""The lines of a benchmark become a summary: one record for each configuration, in one schema, within the limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import summarize

SCHEMA = ["bench", "case", "metric", "value", "unit", "n", "p20", "p80", "commit", "device", "versions", "when"]


def rows(**changed: Any) -> list[dict[str, Any]]:
    row = {"selector": "random", "budget": "20% by task", "protocol": "equal_steps", "group": "all"}
    row |= {"metric": "accuracy", **changed}
    return [row | {"seed": seed, "value": value} for seed, value in enumerate((0.5, 0.6, 0.7))]


def record(case: str, metric: str, value: float = 1.0) -> dict[str, Any]:
    return dict.fromkeys(SCHEMA, "") | {"case": case, "metric": metric, "value": value, "n": 1, "p20": None}


def test_the_seeds_of_a_configuration_become_one_line(tmp_path: Path) -> None:
    run = tmp_path / "pools"
    run.mkdir()
    (run / "results.jsonl").write_text("\n".join(map(json.dumps, rows() + rows(group="sum"))))
    summarize.main([str(run), "--out", str(tmp_path / "out.jsonl")])
    whole, of_sum = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert list(whole) == SCHEMA
    assert (whole["bench"], whole["case"]) == ("pools", "selector=random budget=20%_by_task protocol=equal_steps")
    assert (whole["value"], whole["p20"], whole["p80"]) == pytest.approx((0.6, 0.54, 0.66))
    assert (whole["n"], whole["unit"]) == (3, "share")
    assert of_sum["case"] == whole["case"] + " group=sum"


def test_each_auroc_becomes_three_lines_with_its_interval_and_its_pairs(tmp_path: Path) -> None:
    run = tmp_path / "scores"
    run.mkdir()
    known = {"all": {"value": 0.6, "low": 0.5, "high": 0.7, "pairs": 12}, "asked": None}
    row = {"variant": "ten blocks", "selector": "ost, kfac", "auroc": known, "flops": 2e9, "device_s": 3.0}
    (run / "auroc.jsonl").write_text(json.dumps(row) + "\n")
    summarize.main([str(run), "--out", str(tmp_path / "out.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(list(line) == SCHEMA for line in lines)
    assert {line["case"] for line in lines} == {"variant=ten_blocks selector=ost,_kfac"}
    assert [(line["metric"], line["value"], line["unit"], line["n"]) for line in lines] == [
        ("auroc all", 0.6, "", 12),
        ("auroc all low", 0.5, "", 12),
        ("auroc all high", 0.7, "", 12),
        ("flops", 2e9, "FLOP", 1),
        ("device_s", 3.0, "device-s", 1),
    ]


def test_of_equal_cases_the_newest_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "bench_x.jsonl"
    source.write_text("\n".join(json.dumps(record("a", "time", value)) for value in (2.0, 1.0)))
    summarize.main([str(source), "--out", str(tmp_path / "out.jsonl")])
    assert [json.loads(line)["value"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1.0]


def test_over_the_limit_the_least_important_metrics_are_left_out() -> None:
    records = [
        record(case, metric)
        for metric in ("selection_s", "accuracy", "kept")
        for case in ("selector=ost", "selector=ost group=sum")
        if metric == "accuracy" or "group" not in case
    ]
    kept, left_out = summarize.within_limit(records, 3)
    assert [r["metric"] for r in kept] == ["accuracy", "accuracy", "kept"]
    assert left_out == ["selection_s"]
    assert summarize.within_limit(records, 1) == ([records[1]], ["accuracy by group", "kept", "selection_s"])


def test_what_rows_are_compared_by_is_never_left_out_for_their_costs() -> None:
    costs = ("selection_flops", "kept", "selection_s", "defect_share")
    kept, _ = summarize.within_limit([record("selector=ost", metric) for metric in (*costs, "loss")], 1)
    assert [r["metric"] for r in kept] == ["loss"]
    (of_loss,) = summarize.summarize_benchmark("x", rows(metric="loss"), {})
    assert of_loss["unit"] == "nats"


def test_labels_that_are_written_alike_are_refused() -> None:
    with pytest.raises(SystemExit, match="both written as 'selector=a_b budget"):
        summarize.summarize_benchmark("x", rows(selector="a b") + rows(selector="a_b"), {})
    known = {"auroc": {}, "flops": 1.0, "device_s": 1.0}
    with pytest.raises(SystemExit, match="rename one"):
        summarize.summarize_separation("x", [{"selector": "a b"} | known, {"selector": "a_b"} | known], {})


def test_the_table_has_a_row_for_each_case() -> None:
    table = summarize.markdown([record("a", "time"), record("b", "time", 2.0), record("a", "size", 3.0)])
    assert table.splitlines() == ["| case | time | size |", "| --- | ---: | ---: |", "| a | 1 | 3 |", "| b | 2 |  |"]


@pytest.mark.parametrize("file", sorted(summarize.RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_committed_summaries_follow_the_schema(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert 0 < len(lines) <= summarize.LIMIT
    assert all(list(json.loads(line)) == SCHEMA for line in lines)
