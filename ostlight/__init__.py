"""ostlight chooses training data by what a sample does to the model.

The three steps of the command line, from Python::

    import ostlight

    ostlight.select("config.yaml", "budget.fraction=0.2")
    ostlight.train("config.yaml", "budget.fraction=0.2")
    ostlight.benchmark("configs/demo.yaml")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads that wait by spinning make a busy machine ten times slower (measured: docs/log.md). Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from ostlight.benchmarking.results import ResultRow
    from ostlight.config.budget import Budget
    from ostlight.config.schema import Config
    from ostlight.data.pool import Pool
    from ostlight.data.sample import Sample
    from ostlight.evaluation.evaluate import Result
    from ostlight.models.batch import Batch
    from ostlight.pipeline.select import Selection
    from ostlight.reporting.matrix import Matrix
    from ostlight.selection.context import ScoringContext
    from ostlight.selection.registry import register
    from ostlight.selection.scores import Scores
    from ostlight.selection.selector import Selector

    Source = str | Path | Mapping[str, Any] | Config

# Names are fetched when first used: the kernels and the gradient engine import without what the rest needs.
_HOMES = {
    "Batch": "ostlight.models.batch",
    "Budget": "ostlight.config.budget",
    "Config": "ostlight.config.schema",
    "Pool": "ostlight.data.pool",
    "Sample": "ostlight.data.sample",
    "Scores": "ostlight.selection.scores",
    "Selector": "ostlight.selection.selector",
    "ScoringContext": "ostlight.selection.context",
    "register": "ostlight.selection.registry",
}

__all__ = [
    "Batch",
    "Budget",
    "Config",
    "Pool",
    "Sample",
    "Scores",
    "ScoringContext",
    "Selector",
    "benchmark",
    "evaluate",
    "explain",
    "register",
    "report",
    "select",
    "sources",
    "train",
]


def select(config: Source, *overrides: str) -> Selection:
    """Scores a pool, picks within the budget, writes the subset (``ostlight.pipeline.select``)."""
    from ostlight.config import load_config
    from ostlight.pipeline.select import select as stage

    return stage(load_config(config, *overrides))


def train(config: Source, *overrides: str) -> Path:
    """Trains the target on the selected subset (``ostlight.pipeline.train``)."""
    from ostlight.config import load_config
    from ostlight.pipeline.train import train as stage

    return stage(load_config(config, *overrides))


def evaluate(config: Source, *overrides: str) -> Result:
    """Accuracy of the trained target (``ostlight.pipeline.evaluate``)."""
    from ostlight.config import load_config
    from ostlight.pipeline.evaluate import evaluate as stage

    return stage(load_config(config, *overrides))


def benchmark(config: Source, *overrides: str) -> list[ResultRow]:
    """Compares selectors (``ostlight.benchmarking.benchmark``)."""
    from ostlight.benchmarking.benchmark import benchmark as stage
    from ostlight.config import load_config

    return stage(load_config(config, *overrides))


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes one page about a run folder (``ostlight.reporting.page``)."""
    from ostlight.reporting.page import write_report

    return write_report(run, out)


def explain(run: str | Path, sample_id: str, layers: bool = False) -> None:
    """Prints what a sample does to the model, to whom, and why (``ostlight.reporting.explain``)."""
    from ostlight.reporting.explain import explain as tell

    tell(run, sample_id, layers)


def sources(run: str | Path, tag: str | None = None) -> Matrix:
    """Prints which generator or tag of a run's pool helps and hurts which skill (``ostlight.reporting.sources``)."""
    from ostlight.reporting.sources import sources as tell

    return tell(run, tag)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ostlight")
    raise AttributeError(f"module 'ostlight' has no attribute {name!r}")
