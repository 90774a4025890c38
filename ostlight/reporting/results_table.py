"""The results of a benchmark, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ostlight.benchmarking.metric import METRICS
from ostlight.benchmarking.paired_difference import Difference
from ostlight.benchmarking.results import ResultRow, RowKey, RunResult, summarise
from ostlight.errors import DataError


def read_results(folder: Path) -> list[ResultRow]:
    """Returns the rows of ``results.jsonl``, in its order, with the differences of ``table.jsonl``.

    Raises:
        DataError: a line that is no result; names it.
    """
    runs: dict[tuple[RowKey, int], RunResult] = {}
    for key, record in _records(folder / "results.jsonl", "seed", "group", "metric", "value"):
        seed, metric, value = record["seed"], record["metric"], record["value"]
        run = runs.setdefault((key, seed), RunResult(**key._asdict(), seed=seed, values={}))
        if metric in METRICS:
            run.metric, run.values[record["group"]] = metric, value
        else:
            setattr(run, metric, value)
    differences = {key: record["difference"] for key, record in _records(folder / "table.jsonl", "difference")}
    rows = summarise(list(runs.values()))
    for row in rows:
        if difference := differences.get(row.key):
            row.difference = Difference(**{"seeds": row.seeds} | difference)  # 0.1 did not write them
    return rows


def _records(path: Path, *fields: str) -> Iterator[tuple[RowKey, dict[str, Any]]]:
    """Yields the lines of a file, each with its key; none where there is no file."""
    # What is no text is no JSON either.
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            names = [record[name] or "" for name in ("selector", "budget", "protocol")]
            yield RowKey(record.get("variant", ""), *names), {name: record[name] for name in fields}
        except (ValueError, KeyError, TypeError) as error:
            advice = "run `ostlight benchmark` again to write it"
            raise DataError(f"{path}:{number} is no result ({error!r}); {advice}") from error
