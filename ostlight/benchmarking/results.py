"""From the results of cells to the lines of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from ostlight.benchmarking.paired_difference import CONFIDENCE, Difference, paired_difference
from ostlight.config.schema import BASE


@dataclass
class RunResult:
    """What one cell came to.

    Attributes:
        accuracy: by group, ``all`` among them; 0 to 1.
        kept: samples trained on.
        defect_share: share of them that the truth calls defective; ``None`` without a truth.
        selection_s, training_s: device-seconds; a device is what one process computes on.
        selection_wall_s, training_wall_s: seconds on the clock.
        selection_flops, training_flops: as the cost log counts them.
        selection_calls, selection_price: requests to served models and what they cost.
        correct: ``1`` or ``0`` for each test item, in their order.
    """

    label: str
    budget: str
    protocol: str
    seed: int
    accuracy: dict[str, float]
    kept: int = 0
    defect_share: float | None = None
    selection_s: float = 0.0
    training_s: float = 0.0
    selection_flops: float = 0.0
    training_flops: float = 0.0
    defects_kept: dict[str, int] = field(default_factory=dict)
    variant: str = ""
    selection_wall_s: float = 0.0
    training_wall_s: float = 0.0
    selection_calls: int = 0
    selection_price: float = 0.0
    correct: str = ""

    @property
    def line(self) -> tuple[str, str, str, str]:
        """What names the line that this cell is a seed of."""
        return self.variant, self.label, self.budget, self.protocol


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and the half-width of its 95% interval (Student's t); NaN for a single seed."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        array = np.array(list(values), dtype=float)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"), len(array))
        spread = float(array.std(ddof=1)) / len(array) ** 0.5
        return cls(float(array.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1)) * spread, len(array))


@dataclass(frozen=True)
class ResultRow:
    """A row of the table: all seeds of one selector at one budget and protocol, under one variant of the settings.

    Attributes:
        difference: to the baseline's line of the same variant, budget and protocol, over the seeds both have; ``None``
            where there is no such line.
    """

    variant: str
    label: str
    budget: str
    protocol: str
    accuracy: dict[str, Interval]
    difference: Difference | None
    kept: float
    defect_share: float | None
    selection_s: float
    training_s: float
    selection_wall_s: float
    training_wall_s: float
    selection_flops: float
    training_flops: float
    selection_calls: float = 0.0
    selection_price: float = 0.0

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
    def seeds(self) -> int:
        return next(iter(self.accuracy.values())).n


def summarise(results: Sequence[RunResult], baseline: str | None = None) -> list[ResultRow]:
    """One line for every variant, selector, budget and protocol, in the order they first appear.

    Args:
        results: of all finished cells.
        baseline: label of the line that the others of the same variant, budget and protocol are compared to.
    """
    by_line: dict[tuple[str, str, str, str], list[RunResult]] = {}
    for result in results:
        by_line.setdefault(result.line, []).append(result)
    return [_line(mine, _counterpart(mine[0], by_line, baseline)) for mine in by_line.values()]


def _line(mine: list[RunResult], theirs: list[RunResult] | None) -> ResultRow:
    def mean(name: str) -> float:
        return float(np.mean([getattr(r, name) for r in mine]))

    shares = [r.defect_share for r in mine if r.defect_share is not None]
    return ResultRow(
        *mine[0].line,
        accuracy={g: Interval.of(r.accuracy[g] for r in mine) for g in mine[0].accuracy},
        difference=_difference(mine, theirs) if theirs else None,
        defect_share=float(np.mean(shares)) if shares else None,
        kept=mean("kept"),
        selection_s=mean("selection_s"),
        training_s=mean("training_s"),
        selection_wall_s=mean("selection_wall_s"),
        training_wall_s=mean("training_wall_s"),
        selection_flops=mean("selection_flops"),
        training_flops=mean("training_flops"),
        selection_calls=mean("selection_calls"),
        selection_price=mean("selection_price"),
    )


def _counterpart(
    one: RunResult, by_line: dict[tuple[str, str, str, str], list[RunResult]], baseline: str | None
) -> list[RunResult] | None:
    if baseline is None or one.label == baseline:
        return None
    if baseline == BASE:
        return by_line.get((one.variant, BASE, "", ""))
    # A baseline that ignores the budget, such as the whole pool, stands beside every budget.
    same = by_line.get((one.variant, baseline, one.budget, one.protocol))
    return same or by_line.get((one.variant, baseline, "", one.protocol))


def _difference(mine: list[RunResult], theirs: list[RunResult]) -> Difference | None:
    if len(theirs) == 1 and theirs[0].label == BASE:
        pairs = [(r, theirs[0]) for r in mine]
    else:
        known = {r.seed: r for r in theirs}
        pairs = [(r, known[r.seed]) for r in mine if r.seed in known]
    pairs = [(a, b) for a, b in pairs if a.correct and len(a.correct) == len(b.correct)]
    if not pairs:
        return None
    return paired_difference(_items([a for a, _ in pairs]), _items([b for _, b in pairs]))


def _items(results: Sequence[RunResult]) -> np.ndarray:
    return np.array([[c == "1" for c in r.correct] for r in results])
