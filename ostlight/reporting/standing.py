"""How the selectors of a benchmark stand: accuracy with its interval, and what it cost in all."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ostlight.comparison.cells import BASE, ORACLE
from ostlight.comparison.names import short_names
from ostlight.comparison.results import Interval
from ostlight.errors import DataError

ALL = "all"
"""The group of all questions."""
FIELDS = ("selector", "budget", "protocol", "seed", "group", "metric", "value")


class Key(NamedTuple):
    """What names a line; ``variant`` is empty where there are none."""

    variant: str
    label: str
    budget: str
    protocol: str


@dataclass(frozen=True)
class Standing:
    """One selector at one budget and protocol, over its seeds.

    Attributes:
        name: as short as it can be and still differ from the others of its variant.
        accuracy: by group, ``all`` among them; 0 to 1.
        metrics: mean over seeds of every other figure of the benchmark, by name.
        on_front: by kind of cost, whether nothing else of its variant is both cheaper and at least as accurate.
    """

    variant: str
    label: str
    budget: str
    protocol: str
    name: str
    accuracy: dict[str, Interval]
    metrics: dict[str, float]
    on_front: dict[str, bool]

    @property
    def size(self) -> str:
        """The budget without the tag it was spent within."""
        return self.budget.partition(" within ")[0]

    @property
    def frames(self) -> bool:
        """Whether it is a bound, not a selector."""
        return self.label in (BASE, ORACLE)

    def cost(self, kind: str) -> float:
        """Selection and training together, ``device_s`` or ``flops``."""
        return cost(self.metrics, kind)


COSTS = {"flops": ("selection_flops", "training_flops"), "device_s": ("selection_s", "training_s")}


def cost(metrics: dict[str, float], kind: str) -> float:
    """Selection and training together; NaN where the benchmark says neither."""
    parts = [metrics[name] for name in COSTS[kind] if name in metrics]
    return sum(parts) if parts else float("nan")


def read_standings(path: Path) -> list[Standing]:
    """From ``results.jsonl``, in its order.

    Raises:
        DataError: a line that is no result; names it.
    """
    values: dict[Key, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        record = _record(path, number, line)
        if record["value"] is not None:
            key = Key(record.get("variant", ""), record["selector"], record["budget"] or "", record["protocol"] or "")
            values[key][record["metric"], record["group"]].append(float(record["value"]))
    accuracy = {
        key: {group: Interval.of(v) for (metric, group), v in found.items() if metric == "accuracy"}
        for key, found in values.items()
    }
    metrics = {
        key: {
            metric: float(np.mean(v)) for (metric, group), v in found.items() if metric != "accuracy" and group == ALL
        }
        for key, found in values.items()
    }
    rated = [key for key in values if ALL in accuracy[key]]
    fronts = {kind: _fronts([(cost(metrics[k], kind), accuracy[k][ALL].mean, k) for k in rated]) for kind in COSTS}
    return [
        Standing(*key, name, accuracy[key], metrics[key], {kind: key in front for kind, front in fronts.items()})
        for key, name in zip(rated, short_names(rated), strict=True)
    ]


def _record(path: Path, number: int, line: str) -> dict:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or (lacking := [f for f in FIELDS if f not in record]):
            raise ValueError(f"it lacks {', '.join(lacking) if isinstance(record, dict) else 'everything'}")
        return record
    except ValueError as error:
        raise DataError(
            f"{path}:{number} is no result ({error}); run `ostlight benchmark` again to write it"
        ) from error


def _fronts(points: list[tuple[float, float, Key]]) -> set[Key]:
    """Keys of the selectors (not of the bounds) that none of their variant beats in cost without losing accuracy."""
    rivals = sorted(
        (p for p in points if p[2].label not in (BASE, ORACLE) and p[0] == p[0]), key=lambda p: (p[0], -p[1])
    )
    front, best = set(), defaultdict[str, float](lambda: -1.0)
    for _, accuracy, key in rivals:
        if accuracy > best[key.variant]:
            front.add(key)
            best[key.variant] = accuracy
    return front
