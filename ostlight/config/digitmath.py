"""What a DigitMath pool is made of: sizes, seed and the rates of its known defects."""

from __future__ import annotations

from dataclasses import dataclass, field

TASKS = ("read", "parity", "sum", "difference", "maximum", "sort", "two_step")
ARITHMETIC = ("sum", "difference", "two_step")
"""The tasks that are solved in steps."""

CLEAN = "clean"
DEFECTS = ("arithmetic", "hallucinated", "other_picture", "truncated", "empty", "near_duplicate")


def default_defects() -> dict[str, float]:
    """About half the pool, the systematic error where it hurts: most sums and differences follow a wrong rule."""
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
    """Sizes count samples; every picture is a 2x2 grid of real digits.

    Attributes:
        pool: training samples to choose from, flawed at the rates of ``defects``.
        anchors: trusted samples, the same number for each task up to one.
        dev: clean samples for settings and development.
        test: clean samples for the final figures.
        seed: of the questions and defects. Which digit images belong to which part never changes, because the
            base checkpoints have seen some of them.
        defects: share of the pool for each defect; a name left out has none of it. ``null`` is ``default_defects``.
        anchor_defects: the same for the anchors: what a trusted set is worth that is not quite to be trusted.
        sources: generators by name, each with the defects it makes. Where there are any, every pool record carries a
            tag ``source``: a flawed record that of a generator which makes its flaw, a clean one that of any.
        unlabelled: leaves the answers out of the pool, for choosing what to annotate.
    """

    pool: int = 2500
    anchors: int = 100
    dev: int = 350
    test: int = 1050
    seed: int = 0
    defects: dict[str, float] | None = None
    anchor_defects: dict[str, float] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    unlabelled: bool = False

    def counts(self) -> dict[str, int]:
        """Number of pool samples with each defect, in the order of ``DEFECTS``."""
        return _counts(self._rates, self.pool)

    @property
    def _rates(self) -> dict[str, float]:
        # The default is no value of the setting: a configuration's rates are merged into what is there.
        return default_defects() if self.defects is None else self.defects

    def anchor_counts(self) -> dict[str, int]:
        """The same for the anchors."""
        return _counts(self.anchor_defects, self.anchors)

    def problems(self) -> list[str]:
        """Everything that makes this configuration unusable, one sentence each; empty where it is sound."""
        found = [
            f"{name}: got {size!r}; it must be a whole number above 0"
            for name, size in (("pool", self.pool), ("anchors", self.anchors), ("dev", self.dev), ("test", self.test))
            if not isinstance(size, int) or isinstance(size, bool) or size <= 0
        ]
        found += [
            f"sources.{source}: {name!r} is no defect; valid names are {', '.join(DEFECTS)}"
            for source, names in self.sources.items()
            for name in names
            if name not in DEFECTS
        ]
        found += [
            *_problems_of_rates("defects", self._rates),
            *_problems_of_rates("anchor_defects", self.anchor_defects),
        ]
        if found:
            return found
        return [
            *_problems_of_counts("defects", "pool", self.pool, self.counts()),
            *_problems_of_counts("anchor_defects", "anchor", self.anchors, self.anchor_counts()),
        ]


def _counts(rates: dict[str, float], size: int) -> dict[str, int]:
    return {name: round(rates.get(name, 0.0) * size) for name in DEFECTS}


def _problems_of_rates(where: str, rates: dict[str, float]) -> list[str]:
    found = [
        f"{where}.{name}: no such defect; valid names are {', '.join(DEFECTS)}" for name in rates if name not in DEFECTS
    ]
    wrong = [
        f"{where}.{name}: got {rate!r}; a rate is a number from 0 to 1"
        for name, rate in rates.items()
        if not isinstance(rate, int | float) or not 0 <= rate <= 1
    ]
    if not wrong and sum(rates.values()) > 1 + 1e-9:
        wrong.append(f"{where}: the rates sum to {sum(rates.values()):g}; they may not exceed 1")
    return found + wrong


def _problems_of_counts(where: str, what: str, size: int, counts: dict[str, int]) -> list[str]:
    found = []
    eligible = sum(TASKS[k % len(TASKS)] in ARITHMETIC for k in range(size))
    if counts["arithmetic"] > eligible:
        found.append(
            f"{where}.arithmetic: {counts['arithmetic']} samples asked for, but only {eligible} of the {size} "
            f"{what} samples calculate ({', '.join(ARITHMETIC)}); lower the rate to {eligible / size:.3f}"
        )
    if counts["near_duplicate"] and sum(counts.values()) >= size:
        found.append(f"{where}.near_duplicate: no clean sample is left to copy; lower one of the rates")
    return found
