"""A comparison as files: tables for people, and one JSON record for every figure."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ostlight.benchmarking.results import AVERAGED, ResultRow, RunResult, pareto_optimal
from ostlight.benchmarking.separation import Separation, separation_record, separation_table
from ostlight.benchmarking.table import cost_table, results_table
from ostlight.data.atomic import atomic_write_text

log = logging.getLogger(__name__)

PLOT = "table.png"
WRITTEN = ("table.md", "table.csv", "table.jsonl", "costs.md", "costs.csv", "results.jsonl", PLOT)
"""Files of a finished benchmark. Those called ``table`` hold no times."""

SEPARATIONS = ("auroc.md", "auroc.csv", "auroc.jsonl")
"""With defect labels."""

DEPENDENCY = "dependency"
"""Key of rows of ``score_index.jsonl`` that no selection is made from, only other scores."""

READ_BACK = ("table.jsonl", "results.jsonl", "score_index.jsonl", PLOT)
"""Those that the report reads; ``ostlight.models.saved_files`` lists what they were."""


def write_all(
    results: Sequence[RunResult], rows: Sequence[ResultRow], baseline: str | None, folder: Path, title: str
) -> list[str]:
    """Writes the files of ``WRITTEN``, the plot only where matplotlib is installed; returns the names of those
    written."""
    table, cost = results_table(rows, baseline), cost_table(rows)
    texts = {
        "table.md": table.markdown(),
        "table.csv": table.csv(),
        "table.jsonl": _jsonl(row_record(*pair) for pair in zip(rows, pareto_optimal(rows), strict=True)),
        "costs.md": cost.markdown(),
        "costs.csv": cost.csv(),
        "results.jsonl": _jsonl(record for result in results for record in run_records(result)),
    }
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    return [*texts, *([PLOT] if _write_plot(rows, folder / PLOT, title) else [])]


def write_separations(rows: Sequence[Separation], folder: Path) -> list[str]:
    """Writes ``auroc.md``, ``auroc.csv`` and ``auroc.jsonl``; returns their names."""
    table = separation_table(rows)
    texts = table.markdown(), table.csv(), _jsonl(separation_record(row) for row in rows)
    for name, text in zip(SEPARATIONS, texts, strict=True):
        atomic_write_text(folder / name, text)
    return list(SEPARATIONS)


def _write_plot(rows: Sequence[ResultRow], file: Path, title: str) -> bool:
    try:
        from ostlight.benchmarking.plot import plot_rows
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        log.warning(f"{file.name} is skipped: matplotlib is not installed; pip install 'ostlight[plots]'")
        file.unlink(missing_ok=True)  # it would show older results than the tables
        return False
    plot_rows(rows, file, title)
    return True


def run_records(result: RunResult) -> list[dict[str, Any]]:
    """Returns ``{selector, budget, protocol, seed, group, metric, value}`` for each figure of a run, with ``variant``
    where there are any."""
    key = {"selector": result.label, "budget": result.budget, "protocol": result.protocol, "seed": result.seed}
    if result.variant:
        key["variant"] = result.variant
    records = [key | {"group": g, "metric": result.metric, "value": v} for g, v in result.values.items()]
    metrics = ("kept", "defect_share", *AVERAGED[1:])
    return records + [key | {"group": "all", "metric": m, "value": getattr(result, m)} for m in metrics]


def row_record(row: ResultRow, is_pareto_optimal: bool | None) -> dict[str, Any]:
    """Returns a row of the table of results, unrounded and without times."""
    key = {"selector": row.label, "budget": row.budget, "protocol": row.protocol, "seeds": row.seeds}
    if row.variant:
        key["variant"] = row.variant
    d = row.difference
    return key | {
        row.metric: {g: v.mean for g, v in row.values.items()},
        f"{row.metric}_half_width": {g: v.half_width if v.has_width else None for g, v in row.values.items()},
        "difference": None if d is None else dataclasses.asdict(d),
        "kept": row.kept,
        "defect_share": row.defect_share,
        "selection_flops": row.selection_flops,
        "training_flops": row.training_flops,
        "is_pareto_optimal": is_pareto_optimal,
    }


def _jsonl(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
