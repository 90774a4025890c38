"""The results table of a benchmark: accuracy with its interval, and what it cost in all."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ostlight.benchmarking.names import short_names
from ostlight.benchmarking.pareto import CostAndAccuracy, pareto_optimal
from ostlight.benchmarking.results import Interval
from ostlight.config.schema import BASE, ORACLE
from ostlight.errors import DataError
from ostlight.evaluation.answers import ALL

COSTS = {"flops": ("selection_flops", "training_flops"), "device_s": ("selection_s", "training_s")}
NAMES = ("selector", "budget", "protocol")


class Key(NamedTuple):
    """What identifies a row of the table; ``variant`` is empty where there are none."""

    variant: str
    label: str
    budget: str
    protocol: str


@dataclass(frozen=True)
class TableRow:
    """One selector at one budget and protocol, over its seeds.

    Attributes:
        name: as short as it can be and still differ from the others of its variant.
        accuracy: by group, ``all`` among them; 0 to 1.
        difference: ``mean``, ``low`` and ``high`` of the paired difference in accuracy to the baseline, 0 to 1;
            ``None`` where there is no baseline to compare to.
        metrics: mean over seeds of every other metric of the benchmark, by name.
        on_front: by kind of cost, whether nothing else of its variant is at least as accurate for no more.
    """

    variant: str
    label: str
    budget: str
    protocol: str
    name: str
    accuracy: dict[str, Interval]
    difference: dict[str, float] | None
    metrics: dict[str, float]
    on_front: dict[str, bool]

    @property
    def size(self) -> str:
        """The budget without the tag it is stratified by."""
        return self.budget.partition(" by ")[0]

    @property
    def is_reference(self) -> bool:
        """Whether it is the untrained model or the oracle, not a selector."""
        return self.label in (BASE, ORACLE)

    def cost(self, kind: str) -> float:
        """``device_s`` or ``flops`` of selection and training together; NaN where the benchmark stored neither."""
        return _total_cost(self.metrics, kind)


def _total_cost(metrics: dict[str, float], kind: str) -> float:
    costs = [metrics[name] for name in COSTS[kind] if name in metrics]
    return sum(costs) if costs else float("nan")


def read_results(folder: Path) -> list[TableRow]:
    """Reads ``results.jsonl``, in its order, and the differences of ``table.jsonl``.

    Raises:
        DataError: a line that is no result; names it.
    """
    values: dict[Key, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, record in _records(folder / "results.jsonl", "group", "metric", "value"):
        if record["value"] is not None:
            values[key][record["metric"], record["group"]].append(float(record["value"]))
    accuracy = {
        key: {group: Interval.of(v) for (metric, group), v in by_metric.items() if metric == "accuracy"}
        for key, by_metric in values.items()
    }
    metrics = {
        key: {name: float(np.mean(v)) for (name, group), v in by_metric.items() if name != "accuracy" and group == ALL}
        for key, by_metric in values.items()
    }
    differences = {key: record["difference"] for key, record in _records(folder / "table.jsonl", "difference")}
    keys = [key for key in values if ALL in accuracy[key]]
    fronts = {
        kind: pareto_optimal(
            [CostAndAccuracy(k.variant, k.label, _total_cost(metrics[k], kind), accuracy[k][ALL].mean) for k in keys]
        )
        for kind in COSTS
    }
    return [
        TableRow(
            *key,
            name=name,
            accuracy=accuracy[key],
            difference=differences.get(key),
            metrics=metrics[key],
            on_front={kind: front[k] for kind, front in fronts.items()},
        )
        for k, (key, name) in enumerate(zip(keys, short_names(keys), strict=True))
    ]


def _records(path: Path, *fields: str) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The lines of a file, each with its key; none where there is no file."""
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or (lacking := [f for f in (*NAMES, *fields) if f not in record]):
                raise ValueError(f"it lacks {', '.join(lacking) if isinstance(record, dict) else 'everything'}")
        except ValueError as error:
            raise DataError(
                f"{path}:{number} is no result ({error}); run `ostlight benchmark` again to write it"
            ) from error
        yield Key(record.get("variant", ""), *(record[name] or "" for name in NAMES)), record
