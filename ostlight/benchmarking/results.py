"""From the results of single runs to the rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import NamedTuple

import numpy as np
from scipy import stats

from ostlight.benchmarking.metric import METRICS, Metric
from ostlight.benchmarking.paired_difference import CONFIDENCE, Difference, paired_difference
from ostlight.config.schema import BASE, ORACLE
from ostlight.evaluation.answers import ALL


class RowKey(NamedTuple):
    """What names a row; runs that differ only in their seed share it."""

    variant: str
    label: str
    budget: str
    protocol: str


@dataclass
class Row:
    """What a run and a row of the table have in common: their names, and figures of which a row has the means.

    Attributes:
        variant: label of the changed settings; empty where there are none.
        metric: the name of what is compared (``metric.METRICS``).
        kept: samples selected.
        unusable: of these, samples that the target could not be trained on.
        selection_s, training_s: device-seconds; a device is what one process computes on.
        selection_wall_s, training_wall_s: elapsed seconds.
        selection_flops, training_flops: as the cost log counts them.
        selection_calls, selection_price: requests to served models, and their price.
        defect_share: share of the kept that the defect labels call defective; ``None`` without labels.
    """

    label: str
    budget: str
    protocol: str
    _: KW_ONLY
    variant: str = ""
    metric: str = "accuracy"
    kept: float = 0
    unusable: float = 0
    selection_s: float = 0.0
    training_s: float = 0.0
    selection_wall_s: float = 0.0
    training_wall_s: float = 0.0
    selection_flops: float = 0.0
    training_flops: float = 0.0
    selection_calls: float = 0
    selection_price: float = 0.0
    defect_share: float | None = None

    @property
    def key(self) -> RowKey:
        return RowKey(self.variant, self.label, self.budget, self.protocol)


AVERAGED = tuple(f.name for f in fields(Row) if f.name not in (*RowKey._fields, "metric", "defect_share"))
"""Attributes of a row that are means over its runs; its defect share is one over the runs that have it."""


@dataclass
class RunResult(Row):
    """What one training and its test came to.

    Attributes:
        values: of the metric by group, ``all`` among them.
        items: of the metric for each test item, in their order; NaN where an item has none.
    """

    seed: int
    values: dict[str, float]
    _: KW_ONLY
    items: Sequence[float] = ()


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and the half-width of its 95% interval (Student's t); NaN for a single seed."""

    mean: float
    half_width: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        array = np.array(list(values), dtype=float)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"), len(array))
        spread = float(array.std(ddof=1)) / len(array) ** 0.5
        return cls(float(array.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1)) * spread, len(array))

    @property
    def has_width(self) -> bool:
        """Whether there is more than one seed."""
        return not np.isnan(self.half_width)


@dataclass
class ResultRow(Row):
    """A row of the table: all seeds of one selector at one budget and protocol, under one variant of the settings.

    Attributes:
        values: of the metric by group, ``all`` among them.
        difference: of the metric to the baseline's row of the same variant, budget and protocol, over the seeds that
            both have; ``None`` where there is no such row.
    """

    values: dict[str, Interval]
    difference: Difference | None

    @property
    def compared_by(self) -> Metric:
        return METRICS[self.metric]

    @property
    def total_s(self) -> float:
        return self.selection_s + self.training_s

    @property
    def total_wall_s(self) -> float:
        return self.selection_wall_s + self.training_wall_s

    @property
    def total_flops(self) -> float:
        return self.selection_flops + self.training_flops

    @property
    def is_cost_in_flops(self) -> bool:
        """Whether FLOPs are all that it cost: what served models compute for it is not among them."""
        return not (self.selection_calls or self.selection_price)

    @property
    def seeds(self) -> int:
        return next(iter(self.values.values())).n

    @property
    def is_reference(self) -> bool:
        """Whether it is the untrained model or the oracle, not a selector."""
        return self.label in (BASE, ORACLE)


def summarise(results: Sequence[RunResult], baseline: str | None = None) -> list[ResultRow]:
    """Returns one row for every variant, selector, budget and protocol, in the order in which they first appear.

    Args:
        baseline: label of the row to which the others of the same variant, budget and protocol are compared.
    """
    runs_by_row: dict[RowKey, list[RunResult]] = {}
    for result in results:
        runs_by_row.setdefault(result.key, []).append(result)
    return [_row(key, runs, _baseline_runs(key, runs_by_row, baseline)) for key, runs in runs_by_row.items()]


def pareto_optimal(rows: Sequence[ResultRow]) -> list[bool | None]:
    """Returns for each row whether no other of its variant is at least as good for at most its total FLOPs; ``None``
    where that is not known, since served models were asked, whose FLOPs nothing counts.

    Such a row is compared to the others, and no other to it. The untrained model takes part: a worse model is worth no
    cost. The oracle does not, since clean samples are not known in practice.
    """
    compared = [row for row in rows if row.label != ORACLE and row.is_cost_in_flops]
    return [_is_pareto_optimal(row, compared) for row in rows]


def _is_pareto_optimal(row: ResultRow, compared: Sequence[ResultRow]) -> bool | None:
    if row.label == ORACLE or any(_dominates(other, row) for other in compared):
        return False
    return True if row.is_cost_in_flops else None


def _dominates(one: ResultRow, other: ResultRow) -> bool:
    gain = one.compared_by.gain(one.values[ALL].mean, other.values[ALL].mean)
    saving = other.total_flops - one.total_flops
    return one.variant == other.variant and gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)


def _row(key: RowKey, runs: Sequence[RunResult], baseline_runs: Sequence[RunResult]) -> ResultRow:
    shares = [run.defect_share for run in runs if run.defect_share is not None]
    return ResultRow(
        variant=key.variant,
        label=key.label,
        budget=key.budget,
        protocol=key.protocol,
        metric=runs[0].metric,
        values={group: Interval.of(run.values[group] for run in runs) for group in runs[0].values},
        difference=_difference(runs, baseline_runs),
        defect_share=float(np.mean(shares)) if shares else None,
        **{name: float(np.mean([getattr(run, name) for run in runs])) for name in AVERAGED},
    )


def _baseline_runs(
    key: RowKey, runs_by_row: Mapping[RowKey, Sequence[RunResult]], baseline: str | None
) -> Sequence[RunResult]:
    """Returns the runs that a row is compared to: none where it is the baseline, or there is none."""
    if baseline is None or key.label == baseline:
        return []
    if baseline == BASE:
        return runs_by_row.get(RowKey(key.variant, BASE, "", ""), [])
    # A baseline that ignores the budget, such as the whole pool, is compared to every budget.
    same_budget = runs_by_row.get(key._replace(label=baseline))
    return same_budget or runs_by_row.get(key._replace(label=baseline, budget=""), [])


def _difference(runs: Sequence[RunResult], baseline_runs: Sequence[RunResult]) -> Difference | None:
    """Returns the difference over pairs of the same seed; the untrained model is paired with every seed."""
    if len(baseline_runs) == 1 and baseline_runs[0].label == BASE:
        pairs = [(run, baseline_runs[0]) for run in runs]
    else:
        by_seed = {run.seed: run for run in baseline_runs}
        pairs = [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]
    pairs = [(one, other) for one, other in pairs if len(one.items) and len(one.items) == len(other.items)]
    if not pairs:
        return None
    ones, others = (np.array([run.items for run in runs], dtype=np.float64) for runs in zip(*pairs, strict=True))
    known = np.isfinite(ones).all(axis=0) & np.isfinite(others).all(axis=0)
    return paired_difference(ones[:, known], others[:, known]) if known.any() else None
