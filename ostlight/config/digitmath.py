"""Settings of the built-in pool: sizes, seed and the rates of its known defects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Interval

TASKS = ("read", "parity", "sum", "difference", "maximum", "sort", "two_step")
ARITHMETIC = ("sum", "difference", "two_step")
"""The tasks that are solved in steps."""

CLEAN = "clean"
Defect = Literal["arithmetic", "hallucinated", "other_picture", "truncated", "empty", "near_duplicate"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)
Rates = dict[Defect, Annotated[float, Interval(ge=0, le=1)]]


def default_defects() -> Rates:
    """About half the pool. Most sums and differences follow a wrong rule: the systematic error."""
    return {
        "arithmetic": 0.28,
        "hallucinated": 0.07,
        "other_picture": 0.04,
        "truncated": 0.04,
        "empty": 0.03,
        "near_duplicate": 0.04,
    }


@dataclass
class DigitMath:
    """The built-in pool: questions about images of 2x2 real handwritten digits. Sizes count samples.

    Attributes:
        pool: training samples to choose from.
        anchors: trusted samples, equally many for each task (up to one).
        dev: clean samples for choosing settings.
        test: clean samples for the final figures.
        seed: of questions and defects. Which digit images belong to which part never changes, because the base
            checkpoints have seen some of them.
        defects: share of the pool with each defect; a defect that is not named does not occur.
        anchor_defects: share of the anchors with each defect.
        sources: generators by name, each with the defects that it makes; adds a tag ``source`` to every pool record.
        unlabelled: leave the answers out of the pool, for choosing what to annotate.
    """

    pool: Annotated[int, Ge(1)] = 2500
    anchors: Annotated[int, Ge(1)] = 100
    dev: Annotated[int, Ge(1)] = 350
    test: Annotated[int, Ge(1)] = 1050
    seed: int = 0
    defects: Rates = field(default_factory=default_defects)
    anchor_defects: Rates = field(default_factory=dict)
    sources: dict[str, list[Defect]] = field(default_factory=dict)
    unlabelled: bool = False

    def counts(self) -> dict[Defect, int]:
        """Number of pool samples with each defect, in the order of ``DEFECTS``."""
        return _counts(self.defects, self.pool)

    def anchor_counts(self) -> dict[Defect, int]:
        """Number of anchors with each defect."""
        return _counts(self.anchor_defects, self.anchors)

    def problems(self) -> Iterator[str]:
        yield from _rate_problems("defects", "pool", self.pool, self.defects)
        yield from _rate_problems("anchor_defects", "anchor", self.anchors, self.anchor_defects)


def _counts(rates: Rates, size: int) -> dict[Defect, int]:
    return {name: round(rates.get(name, 0.0) * size) for name in DEFECTS}


def _rate_problems(where: str, part: str, size: int, rates: Rates) -> Iterator[str]:
    if sum(rates.values()) > 1 + 1e-9:
        yield f"{where}: the rates sum to {sum(rates.values()):g}; they may not exceed 1"
        return
    counts = _counts(rates, size)
    eligible = sum(TASKS[k % len(TASKS)] in ARITHMETIC for k in range(size))
    if counts["arithmetic"] > eligible:
        yield (
            f"{where}.arithmetic: {counts['arithmetic']} samples asked for, but only {eligible} of the {size} "
            f"{part} samples calculate ({', '.join(ARITHMETIC)}); lower the rate to {eligible / size:.3f}"
        )
    if counts["near_duplicate"] and sum(counts.values()) >= size:
        yield f"{where}.near_duplicate: no clean sample is left to copy; lower one of the rates"
