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


def test_the_table_has_a_row_for_each_case() -> None:
    table = summarize.markdown([record("a", "time"), record("b", "time", 2.0), record("a", "size", 3.0)])
    assert table.splitlines() == ["| case | time | size |", "| --- | ---: | ---: |", "| a | 1 | 3 |", "| b | 2 |  |"]


@pytest.mark.parametrize("file", sorted(summarize.RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_committed_summaries_follow_the_schema(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert 0 < len(lines) <= summarize.LIMIT
    assert all(list(json.loads(line)) == SCHEMA for line in lines)
