"""The planned runs of a benchmark: what to train on, for how long, with which seed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ostlight.config.budget import Budget
from ostlight.config.schema import BASE, ORACLE, Benchmark, Config, SelectorChoice, Training
from ostlight.selection.registry import load


@dataclass(frozen=True)
class PlannedRun:
    """One training and its test.

    Attributes:
        label: the selector's name in tables. ``base`` (nothing trained) and ``oracle`` (clean samples only, which needs
            defect labels) are not selectors: they are references for the others.
        choice: the selector; ``None`` for ``base`` and ``oracle``.
        budget: ``None`` for ``base`` and for selectors that ignore it.
        protocol: ``equal_epochs`` or ``equal_steps``; empty for ``base``.
        seed: of the training, and of stochastic selectors.
        variant: label of the changed settings it runs under; empty for the configuration as it is.
    """

    label: str
    choice: SelectorChoice | None
    budget: Budget | None
    protocol: str
    seed: int
    variant: str = ""

    @property
    def name(self) -> str:
        """For people and file names."""
        parts = [self.variant, self.label, self.budget.label if self.budget else "", self.protocol, f"seed{self.seed}"]
        return file_name("-".join(p for p in parts if p))


def file_name(text: str) -> str:
    """Returns the text with what a file name cannot hold replaced."""
    text = text.replace(" ", "_").replace(">=", "ge")
    return "".join(c if c.isalnum() or c in "-_.%+" else "_" for c in text)


def plan_runs(benchmark: Benchmark, with_oracle: bool, variant: str = "") -> list[PlannedRun]:
    """Returns all planned runs: the references first, then the selectors in the order of the configuration."""
    planned_runs = [PlannedRun(BASE, None, None, "", benchmark.seeds[0], variant)]
    for protocol in benchmark.protocols:
        rows: list[tuple[str, SelectorChoice | None, Budget | None]] = []
        if with_oracle:
            rows += [(ORACLE, None, b) for b in benchmark.budgets if b.threshold is None and b.tokens is None][:1]
        for choice in benchmark.selectors:
            budgets = [None] if load(choice.name).ignores_budget else benchmark.budgets
            rows += [(choice.shown, choice, budget) for budget in budgets]
        planned_runs += [PlannedRun(*row, protocol, seed, variant) for row in rows for seed in benchmark.seeds]
    return planned_runs


def run_training(config: Config, planned: PlannedRun, pool_size: int) -> Training:
    """Returns the target's settings for a planned run: its own epochs, or as many steps as the whole pool takes."""
    training = config.target.training
    if planned.protocol == "equal_epochs" or training.steps is not None:
        return training
    epochs = 1.0 if training.epochs is None else training.epochs
    return dataclasses.replace(training, epochs=None, steps=math.ceil(pool_size * epochs / training.batch_size))
