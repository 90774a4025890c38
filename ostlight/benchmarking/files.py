"""A comparison as files: tables for people, and one JSON record for every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostlight.benchmarking.pareto import pareto_front
from ostlight.benchmarking.plot import draw
from ostlight.benchmarking.results import ResultRow, RunResult
from ostlight.benchmarking.table import accuracy_table, cost_table
from ostlight.data.atomic import atomic_write_text

WRITTEN = (
    "table.md", "table.csv", "table.jsonl", "costs.md", "costs.csv", "results.jsonl", "table.png",
)  # fmt: skip
"""Files of a finished benchmark. Those called ``table`` hold no times."""
RUN_METRICS = (
    "kept",
    "defect_share",
    "selection_s",
    "training_s",
    "selection_wall_s",
    "training_wall_s",
    "selection_flops",
    "training_flops",
    "selection_calls",
    "selection_price",
)


def write_all(
    results: Sequence[RunResult], lines: Sequence[ResultRow], baseline: str | None, folder: Path, title: str
) -> None:
    """Writes the files of ``WRITTEN`` into a folder."""
    accuracy, cost = accuracy_table(lines, baseline), cost_table(lines)
    texts = {
        "table.md": accuracy.markdown(),
        "table.csv": accuracy.csv(),
        "table.jsonl": _jsonl(line_record(line, f) for line, f in zip(lines, pareto_front(lines), strict=True)),
        "costs.md": cost.markdown(),
        "costs.csv": cost.csv(),
        "results.jsonl": _jsonl(record for result in results for record in run_records(result)),
    }
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    draw(lines, folder / "table.png", title)


def run_records(result: RunResult) -> list[dict[str, Any]]:
    """``{selector, budget, protocol, seed, group, metric, value}`` for each figure; ``variant`` where there are any."""
    key = {"selector": result.label, "budget": result.budget, "protocol": result.protocol, "seed": result.seed}
    if result.variant:
        key["variant"] = result.variant
    records = [key | {"group": g, "metric": "accuracy", "value": v} for g, v in result.accuracy.items()]
    return records + [key | {"group": "all", "metric": m, "value": getattr(result, m)} for m in RUN_METRICS]


def line_record(line: ResultRow, on_front: bool) -> dict[str, Any]:
    """A line of the table, unrounded: accuracies, the difference and its interval, FLOPs. No times."""
    key = {"selector": line.label, "budget": line.budget, "protocol": line.protocol, "seeds": line.seeds}
    if line.variant:
        key["variant"] = line.variant
    d = line.difference
    return key | {
        "accuracy": {g: v.mean for g, v in line.accuracy.items()},
        "accuracy_half": {g: None if v.half != v.half else v.half for g, v in line.accuracy.items()},
        "difference": None if d is None else {"mean": d.mean, "low": d.low, "high": d.high, "items": d.items},
        "kept": line.kept,
        "defect_share": line.defect_share,
        "selection_flops": line.selection_flops,
        "training_flops": line.training_flops,
        "on_front": on_front,
    }


def _jsonl(records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
