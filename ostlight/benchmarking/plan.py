"""One cell of a comparison: what to train on, for how long, with which seed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ostlight.config.budget import Budget
from ostlight.config.schema import BASE, ORACLE, Benchmark, Config, SelectorChoice, Training
from ostlight.selection.registry import load


@dataclass(frozen=True)
class PlannedRun:
    """A row of the table, before its seeds are averaged.

    Attributes:
        label: the selector's name in tables; ``base`` (nothing trained) and ``oracle`` (clean samples only, which needs
            the truth) are not selectors, and frame the others.
        choice: the selector, ``None`` for ``base`` and ``oracle``.
        budget: ``None`` for ``base`` and for selectors that ignore it.
        protocol: ``equal_epochs`` or ``equal_steps``; empty for ``base``.
        seed: of the training, and of selectors that declare themselves ``stochastic``.
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
        """For people, and for the cell's file."""
        parts = [self.variant, self.label, self.budget.label if self.budget else "", self.protocol, f"seed{self.seed}"]
        return file_name("-".join(p for p in parts if p))


def file_name(text: str) -> str:
    """The text without what a file's name cannot hold."""
    kept = text.replace(" ", "_").replace(">=", "ge")
    return "".join(c if c.isalnum() or c in "-_.%+" else "_" for c in kept)


def plan_runs(benchmark: Benchmark, with_oracle: bool, variant: str = "") -> list[PlannedRun]:
    """All cells: the two framing rows first, then the selectors as the configuration orders them."""
    planned_runs = [PlannedRun(BASE, None, None, "", benchmark.seeds[0], variant)]
    for protocol in benchmark.protocols:
        if with_oracle:
            sizes = [b for b in benchmark.budgets if b.threshold is None and b.tokens is None][:1]
            planned_runs += [
                PlannedRun(ORACLE, None, b, protocol, seed, variant) for b in sizes for seed in benchmark.seeds
            ]
        for choice in benchmark.selectors:
            budgets: list[Budget | None] = [None] if load(choice.name).ignores_budget else list(benchmark.budgets)
            planned_runs += [
                PlannedRun(choice.shown, choice, b, protocol, seed, variant)
                for b in budgets
                for seed in benchmark.seeds
            ]
    return planned_runs


def run_training(config: Config, planned: PlannedRun, pool_size: int) -> Training:
    """The target's settings for a cell: its own epochs, or as many steps as the whole pool would take."""
    training = config.target.training
    if planned.protocol == "equal_epochs" or training.steps is not None:
        return training
    epochs = 1.0 if training.epochs is None else training.epochs
    steps = math.ceil(pool_size * epochs / training.batch_size)
    return dataclasses.replace(training, epochs=None, steps=steps)
