"""The results table of a benchmark: accuracy with its interval, and what it cost in all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostlight.benchmarking.names import short_names
from ostlight.benchmarking.paired_difference import Difference
from ostlight.benchmarking.pareto import CostAndAccuracy, pareto_optimal
from ostlight.benchmarking.results import ResultRow, RowKey, RunResult, summarise
from ostlight.config.schema import BASE, ORACLE
from ostlight.errors import DataError
from ostlight.evaluation.answers import ALL

COSTS = {"flops": "total_flops", "device_s": "total_s"}
"""Attribute of a row by kind of cost."""


@dataclass(frozen=True)
class ResultsRow(ResultRow):
    """A row of a benchmark's table, and what the page needs beyond it.

    Attributes:
        name: as short as it can be and still differ from the others of its variant.
        on_front: by kind of cost, whether nothing else of its variant is at least as accurate for no more.
    """

    name: str = ""
    on_front: dict[str, bool] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """The budget without the tag it is stratified by."""
        return self.budget.partition(" by ")[0]

    @property
    def is_reference(self) -> bool:
        """Whether it is the untrained model or the oracle, not a selector."""
        return self.label in (BASE, ORACLE)

    def position(self, cost: str) -> str:
        """``reference``, or ``front`` or ``behind`` the Pareto front of that kind of cost."""
        return "reference" if self.is_reference else "front" if self.on_front[cost] else "behind"

    def cost(self, kind: str) -> float:
        """``device_s`` or ``flops`` of selection and training together; 0 where the benchmark stored neither."""
        return float(getattr(self, COSTS[kind]))


def read_results(folder: Path) -> list[ResultsRow]:
    """Reads ``results.jsonl``, in its order, and the differences of ``table.jsonl``.

    Raises:
        DataError: a line that is no result; names it.
    """
    runs: dict[tuple[RowKey, int], RunResult] = {}
    for key, record in _records(folder / "results.jsonl", "seed", "group", "metric", "value"):
        seed, metric, value = record["seed"], record["metric"], record["value"]
        new = RunResult(key.label, key.budget, key.protocol, seed, {}, variant=key.variant)
        run = runs.setdefault((key, seed), new)
        if metric == "accuracy":
            run.accuracy[record["group"]] = value
        else:
            setattr(run, metric, value)
    differences = {key: record["difference"] for key, record in _records(folder / "table.jsonl", "difference")}
    rows = summarise(list(runs.values()))
    fronts = {}
    for kind, cost in COSTS.items():
        points = [CostAndAccuracy(r.variant, r.label, getattr(r, cost), r.accuracy[ALL].mean) for r in rows]
        fronts[kind] = pareto_optimal(points)
    shown = []
    for k, (row, name) in enumerate(zip(rows, short_names(rows), strict=True)):
        difference = differences.get(RowKey(row.variant, row.label, row.budget, row.protocol))
        paired = Difference(**difference, seeds=row.seeds) if difference else None
        on_front = {kind: front[k] for kind, front in fronts.items()}
        shown.append(ResultsRow(**vars(row) | {"difference": paired}, name=name, on_front=on_front))
    return shown


def _records(path: Path, *fields: str) -> Iterator[tuple[RowKey, dict[str, Any]]]:
    """The lines of a file, each with its key; none where there is no file."""
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            record = json.loads(line)
            names = [record[name] or "" for name in ("selector", "budget", "protocol")]
            yield RowKey(record.get("variant", ""), *names), {name: record[name] for name in fields}
        except (ValueError, KeyError, TypeError) as error:
            advice = "run `ostlight benchmark` again to write it"
            raise DataError(f"{path}:{number} is no result ({error!r}); {advice}") from error
