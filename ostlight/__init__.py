"""Chooses training data by what a sample does to the model.

The steps of the command line, from Python::

    import ostlight

    selection = ostlight.select("mine.yaml", "budget.fraction=0.2")
    selection.scores.to_pandas()
    selection.subset
    ostlight.train("mine.yaml", {"target.training.lr": 1e-4})
    ostlight.evaluate("mine.yaml")
    ostlight.benchmark("configs/demo.yaml")

A configuration is a YAML file, the same as nested data, or a ``Config``; overrides are texts (``"seed=1"``), lists of
texts, or mappings, nested or with dotted keys. What is wrong raises an ``OstlightError`` (``ostlight.errors``).

Pool, anchors, development and test set may be objects of the program: ``ostlight.select(config, pool=records)`` takes a
``datasets.Dataset``, a list of dicts, a DataFrame or an Arrow table in the place of ``pool.path``; likewise
``anchors``, ``dev`` and ``test``, in every stage. They are written to ``RUN/records`` once, so that a rerun resumes,
and a changed pool is refused as a changed file is.

Importing ostlight changes nothing global and configures no logging; ``ostlight.configure_logging()`` shows on the
console what the command line shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack

    from ostlight.benchmarking.results import ResultRow
    from ostlight.config.budget import Budget
    from ostlight.config.load import Source, load_config
    from ostlight.config.overrides import Override
    from ostlight.config.schema import Config
    from ostlight.data.pool import Pool
    from ostlight.data.sample import Sample
    from ostlight.errors import (
        BadRecord,
        BenchmarkError,
        ClusterError,
        ConfigError,
        DataError,
        DivergedError,
        InfluenceError,
        ModelError,
        OstlightError,
        PendingError,
        RankFailedError,
        RunChangedError,
        RunInUseError,
        SelectorError,
        UnknownLayoutError,
    )
    from ostlight.evaluation.evaluate import Result
    from ostlight.logs import configure_logging
    from ostlight.models.batch import Batch
    from ostlight.pipeline.given_records import Given
    from ostlight.pipeline.init_config import init_config
    from ostlight.pipeline.run_plan import RunPlan
    from ostlight.pipeline.selection import Selection
    from ostlight.pipeline.validate import Validation
    from ostlight.reporting.matrix import Matrix
    from ostlight.selection.context import ScoringContext
    from ostlight.selection.registry import register
    from ostlight.selection.score_files import ScoreFiles
    from ostlight.selection.scores import Scores
    from ostlight.selection.selector import Selector
    from ostlight.sharing.export import Export

_ERRORS = (
    "BadRecord",
    "BenchmarkError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "InfluenceError",
    "ModelError",
    "OstlightError",
    "PendingError",
    "RankFailedError",
    "RunChangedError",
    "RunInUseError",
    "SelectorError",
    "UnknownLayoutError",
)

# Imported on first use: `import ostlight` stays fast, and the influence library works without the rest. For the same
# reason a stage is imported after its configuration was checked.
_MODULES = {
    **dict.fromkeys(_ERRORS, "ostlight.errors"),
    "Batch": "ostlight.models.batch",
    "Budget": "ostlight.config.budget",
    "Config": "ostlight.config.schema",
    "Pool": "ostlight.data.pool",
    "Sample": "ostlight.data.sample",
    "ScoreFiles": "ostlight.selection.score_files",
    "Scores": "ostlight.selection.scores",
    "Result": "ostlight.evaluation.evaluate",
    "RunPlan": "ostlight.pipeline.run_plan",
    "Selection": "ostlight.pipeline.selection",
    "Validation": "ostlight.pipeline.validate",
    "load_config": "ostlight.config.load",
    "ScoringContext": "ostlight.selection.context",
    "Selector": "ostlight.selection.selector",
    "configure_logging": "ostlight.logs",
    "init_config": "ostlight.pipeline.init_config",
    "register": "ostlight.selection.registry",
}

__all__ = [
    "BadRecord",
    "Batch",
    "BenchmarkError",
    "Budget",
    "ClusterError",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "InfluenceError",
    "ModelError",
    "OstlightError",
    "PendingError",
    "Pool",
    "RankFailedError",
    "Result",
    "RunChangedError",
    "RunInUseError",
    "RunPlan",
    "Sample",
    "ScoreFiles",
    "Scores",
    "ScoringContext",
    "Selection",
    "Selector",
    "SelectorError",
    "UnknownLayoutError",
    "Validation",
    "benchmark",
    "configure_logging",
    "evaluate",
    "explain",
    "export",
    "init_config",
    "load_config",
    "plan",
    "register",
    "report",
    "rescore",
    "select",
    "sources",
    "train",
    "validate",
]


def validate(config: Source, *overrides: Override, **data: Unpack[Given]) -> Validation:
    """Checks a configuration against its data and models and estimates what the run will cost; trains nothing."""
    from ostlight.pipeline.command import inspection

    with inspection(config, overrides, data) as loaded:
        from ostlight.pipeline.validate import validate as check

        return check(loaded)


def plan(config: Source, *overrides: Override, **data: Unpack[Given]) -> RunPlan:
    """Returns what every stage will cost, from shapes alone; loads no weight (``ostlight.pipeline.plan``)."""
    from ostlight.pipeline.command import inspection

    with inspection(config, overrides, data) as loaded:
        from ostlight.pipeline.plan import plan as estimate

        return estimate(loaded)


def select(config: Source, *overrides: Override, **data: Unpack[Given]) -> Selection:
    """Scores the pool, selects within the budget and writes the subset (``ostlight.pipeline.select``)."""
    from ostlight.pipeline.command import after_select, command

    with command(config, overrides, after_select, data) as loaded:
        from ostlight.pipeline.select import select as stage

        return stage(loaded)


def rescore(config: Source, *overrides: Override, name: str | None = None) -> Path:
    """Scores for other anchors from what the run stored, in a run folder of their own, which is returned
    (``ostlight.pipeline.rescore``)."""
    from ostlight.config import load_config
    from ostlight.pipeline.rescore import rescore as stage
    from ostlight.progress_display import show_progress

    loaded = load_config(config, *overrides)
    with show_progress(loaded.compute.progress):
        return stage(loaded, name)


def train(config: Source, *overrides: Override, **data: Unpack[Given]) -> Path:
    """Trains the target on the selected subset and returns its folder (``ostlight.pipeline.train``)."""
    from ostlight.pipeline.command import after_train, command

    with command(config, overrides, after_train, data) as loaded:
        from ostlight.pipeline.train import train as stage

        return stage(loaded)


def evaluate(config: Source, *overrides: Override, **data: Unpack[Given]) -> Result:
    """Returns the accuracy of the trained target on the test set (``ostlight.pipeline.evaluate``)."""
    from ostlight.pipeline.command import command

    with command(config, overrides, lambda _: "report", data) as loaded:
        from ostlight.pipeline.evaluate import evaluate as stage

        return stage(loaded)


def benchmark(config: Source, *overrides: Override, **data: Unpack[Given]) -> list[ResultRow]:
    """Compares selectors and returns the rows of the table (``ostlight.benchmarking.benchmark``)."""
    from ostlight.pipeline.command import command

    with command(config, overrides, lambda _: "report", data) as loaded:
        from ostlight.benchmarking.benchmark import benchmark as stage

        return stage(loaded)


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes one HTML page about a run folder and returns its path (``ostlight.reporting.page``)."""
    from ostlight.reporting.page import write_report

    return write_report(run, out)


def export(
    run: str | Path,
    out: str | Path | None = None,
    *,
    tools: Sequence[str] = (),
    license: Sequence[str] = (),
    push: str | None = None,
    public: bool = False,
) -> Export:
    """Writes what a run has selected as a data set with a card, for the Hub and other trainers
    (``ostlight.sharing.export``)."""
    from ostlight.sharing.export import export as write

    return write(run, out, tools=tools, license=license, push=push, public=public)


def explain(run: str | Path, sample_id: str, layers: bool = False) -> None:
    """Prints what a sample does to the model, for which anchors, and why (``ostlight.reporting.explain``)."""
    from ostlight.reporting.explain import explain as print_explanation

    print_explanation(run, sample_id, layers)


def sources(run: str | Path, tag: str | None = None) -> Matrix:
    """Prints and returns which tags of a pool help or hurt which skill (``ostlight.reporting.sources``)."""
    from ostlight.reporting.sources import sources as print_sources

    return print_sources(run, tag)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *globals()})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ostlight")
    raise AttributeError(f"module 'ostlight' has no attribute {name!r}")
